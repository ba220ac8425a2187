/*
 * serial.c - COM1: output through a ring that processor 0 drains a little at a
 * time, and the host's commands, one a line.
 */
#include "rt.h"

#define COM1 0x3f8
#define RING (1u << 20)
#define FIFO 16

static char *ring;
static volatile u32 head, tail; /* head: next free, tail: next to send; free running */
static char line[128];
static u32 line_len;

void serial_setup(void)
{
	outb(COM1 + 1, 0);
	outb(COM1 + 3, 0x80);
	outb(COM1, 1); /* 115200 */
	outb(COM1 + 1, 0);
	outb(COM1 + 3, 3);
	outb(COM1 + 2, 7);
	outb(COM1 + 4, 3);
	ring = heap_alloc(RING);
}

/* Send at most budget bytes; each burst fits the empty FIFO. */
void serial_drain(u32 budget)
{
	while (ring && tail != head && budget) {
		u32 n = head - tail, to_end = RING - tail % RING;
		if (n > FIFO)
			n = FIFO;
		if (n > to_end)
			n = to_end;
		if (n > budget)
			n = budget;
		if (!(inb(COM1 + 5) & 0x20))
			return;
		outsb(COM1, ring + tail % RING, n);
		tail += n;
		budget -= n;
	}
}

int serial_pending(void)
{
	return head != tail;
}

u64 serial_room(void)
{
	return RING - (head - tail);
}

void put_char(char c)
{
	if (ring && head - tail < RING)
		ring[head++ % RING] = c;
}

void put_bytes(const char *s, u64 n)
{
	while (n--)
		put_char(*s++);
}

void put_str(const char *s)
{
	while (*s)
		put_char(*s++);
}

void put_dec(u64 v)
{
	char b[20];
	u32 n = 0;
	do
		b[n++] = (char)('0' + v % 10);
	while (v /= 10);
	while (n)
		put_char(b[--n]);
}

void put_hex(u64 v)
{
	put_str("0x");
	for (int s = 60; s >= 0; s -= 4)
		if (v >> s || s == 0)
			put_char("0123456789abcdef"[v >> s & 15]);
}

/* The next word of a command; *p moves behind it. */
static char *word(char **p)
{
	char *w;
	while (**p == ' ')
		++*p;
	w = *p;
	while (**p && **p != ' ')
		++*p;
	if (**p)
		*(*p)++ = 0;
	return w;
}

static int same(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

/* Decimal, or hexadecimal after 0x. */
static u64 number(const char *s)
{
	u64 v = 0, base = 10;
	if (s[0] == '0' && (s[1] | 32) == 'x')
		s += 2, base = 16;
	for (; *s; s++) {
		u64 d = *s <= '9' ? (u64)(*s - '0') : (u64)((*s | 32) - 'a' + 10);
		if (d >= base)
			break;
		v = v * base + d;
	}
	return v;
}

static void answer(const char *what, u64 v)
{
	put_str(what);
	put_char(' ');
	put_dec(v);
	put_char('\n');
}

/* The process a command names, which must be alive; says so if it is not. */
static struct proc *named(const char *arg)
{
	struct proc *p = proc_by_pid((u32)number(arg));

	if (p && p->state == P_ALIVE)
		return p;
	answer("ERROR no such process", number(arg));
	return NULL;
}

/* "<what> <pid>", and more on the same line by the caller. */
static void answer_of(const char *what, const struct proc *p)
{
	put_str(what);
	put_char(' ');
	put_dec(p->id.pid);
	put_char(' ');
}

static void pages(struct proc *p, u64 va)
{
	u64 pa;
	const char *state = page_state(p, va, &pa);

	answer_of("PAGE", p);
	put_hex(va);
	put_char(' ');
	put_str(state);
	put_char(' ');
	put_hex(pa);
	put_char('\n');
}

static void progress(struct proc *p)
{
	u32 v = 0;

	if (!p->id.progress || user_peek(p, p->id.progress, &v)) {
		answer("ERROR no counter in process", p->id.pid);
		return;
	}
	answer_of("PROGRESS", p);
	put_dec(v);
	put_char('\n');
}

/* The living processes, in a hundredth of the words of truth(). */
static void list(void)
{
	u32 n = 0;

	for (u32 i = 0; i < MAX_PROCS; i++) {
		if (procs[i].state != P_ALIVE)
			continue;
		n++;
		put_event("PROCESS ", &procs[i]);
		put_char(' ');
		put_dec(procs[i].live_threads);
		put_char('\n');
	}
	answer("LISTED", n);
}

static void command(char *s)
{
	char *verb = word(&s);
	char *arg = word(&s);
	struct proc *p;

	if (same(verb, "truth")) {
		truth();
	} else if (same(verb, "list")) {
		list();
	} else if (same(verb, "start")) {
		u32 status = 0;
		p = proc_start(arg, 4, (u32)number(word(&s)), &status);
		if (!p)
			answer("ERROR start", status);
	} else if (same(verb, "kill")) {
		p = proc_by_pid((u32)number(arg));
		if (!p || p->state != P_ALIVE || p->id.flags & NT_PROC_KERNEL)
			answer("ERROR no such process", number(arg));
		else
			proc_terminate(p, (u32)number(word(&s)));
	} else if (same(verb, "trim")) {
		p = named(arg);
		if (p)
			answer("TRIMMED", trim(p));
	} else if (same(verb, "evict")) {
		p = named(arg);
		if (p)
			answer("EVICTED", evict(p));
	} else if (same(verb, "pages")) {
		p = named(arg);
		if (p)
			pages(p, number(word(&s)));
	} else if (same(verb, "progress")) {
		p = named(arg);
		if (p)
			progress(p);
	} else if (same(verb, "fault")) {
		p = named(arg);
		if (p)
			p->fault_at = number(word(&s));
	} else if (same(verb, "handles")) {
		p = named(arg);
		if (p) {
			answer_of("HANDLES", p);
			put_dec(handle_count(p));
			put_char('\n');
		}
	} else if (same(verb, "reap")) {
		answer("REAPED", reap(1));
	} else if (same(verb, "pause") || same(verb, "resume")) {
		churn_off = verb[0] == 'p';
		answer("CHURN", !churn_off);
		for (u32 i = 0; i < MAX_THREADS; i++)
			if (!churn_off && threads[i].state == T_WAITING && threads[i].parked)
				thread_ready(&threads[i]);
	} else if (same(verb, "freeze") || same(verb, "thaw")) {
		frozen = verb[0] == 'f';
		freeze_asked = 1; /* answered when every processor has followed */
		for (u32 i = 0; i < boot->ncpu; i++) {
			cpus[i].resched = 1;
			poke(&cpus[i]);
		}
	} else if (*verb) {
		put_str("ERROR unknown command ");
		put_str(verb);
		put_char('\n');
	}
}

/* Take what the host has typed; a whole line is a command. */
void serial_poll(void)
{
	while (inb(COM1 + 5) & 1) {
		char c = (char)inb(COM1);
		if (c == '\n' || c == '\r') {
			line[line_len] = 0;
			line_len = 0;
			command(line);
		} else if (line_len < sizeof line - 1) {
			line[line_len++] = c;
		}
	}
}
