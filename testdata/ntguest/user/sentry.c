/*
 * sentry.c - a service that works now and then and watches its own context all the
 * while: what a debugger, a hypervisor or another thread does to it without giving
 * everything back is said on the serial line (MSG <pid> CONTEXT ...), and the
 * process ends with a status of its own, DEAD03xx.
 *
 * watch_context (sentry_asm.h) owns every register for some forty thousand
 * instructions; this file chooses what they hold and knows what must come out.
 */
#include "program.h"
#include "sentry_asm.h"

#define MS (-10000LL)
#define PAUSE (300 * MS)
#define FLAGS_WATCHED (0x8d5 | 0x400 | 0x200000) /* CF PF AF ZF SF OF, DF, ID */
#define FLAGS_KEPT 0x202

static const char register_name[15][4] = {
	"rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
};
static volatile u64 *const tick_count = (u64 volatile *)0x7ffe0320; /* KUSER_SHARED_DATA */

/* One thread's state, on its stack. */
struct sentry {
	struct watched w;
	u64 random;
	u32 turn;
};

static u64 next_random(struct sentry *s)
{
	s->random ^= s->random << 13; /* xorshift64 (Marsaglia, 2003) */
	s->random ^= s->random >> 7;
	s->random ^= s->random << 17;
	return s->random;
}

static u32 *teb_word(u32 offset)
{
	u8 *teb;
	__asm__("movq %%gs:0x30, %0" : "=r"(teb));
	return (u32 *)(teb + offset);
}

static u16 *put_text(u16 *at, const char *s)
{
	while (*s)
		*at++ = (u16)*s++;
	return at;
}

static u16 *put_number(u16 *at, u64 v)
{
	for (int shift = 60; shift >= 0; shift -= 4)
		if (v >> shift || !shift)
			*at++ = (u16)"0123456789abcdef"[v >> shift & 15];
	return at;
}

/* Say what changed and end. */
static void changed(u32 code, const char *what, u32 index, u64 got, u64 want)
{
	u16 line[100], *at = put_text(line, "CONTEXT ");

	at = put_text(at, what);
	if (index != ~0u) {
		at = put_text(at, " ");
		at = put_number(at, index);
	}
	at = put_text(at, " is ");
	at = put_number(at, got);
	at = put_text(at, ", must be ");
	at = put_number(at, want);
	*at = 0;
	OutputDebugStringW(line);
	ExitProcess(0xdead0300 + code);
}

static void same(u32 code, const char *what, u32 index, u64 got, u64 want)
{
	if (got != want)
		changed(code, what, index, got, want);
}

/* A new pattern for everything. */
static void prepare(struct sentry *s)
{
	struct watched *w = &s->w;
	u64 r = next_random(s);

	for (u32 i = 0; i < 15; i++)
		w->gpr[i] = next_random(s);
	w->flags = (r & FLAGS_WATCHED) | FLAGS_KEPT;
	for (u32 i = 0; i < 32; i++) {
		w->xmm[i] = next_random(s);
		w->step[i] = next_random(s);
	}
	for (u32 i = 0; i < 8; i++)
		w->st[i] = next_random(s);
	w->mxcsr = 0x1f80 | (u32)(r >> 32 & 0xe03f);     /* rounding, flush to zero, sticky flags */
	w->cw = (u16)(0x27f | (r >> 16 & 0xd00));              /* precision, rounding */
	w->mmx = r >> 40 & 1;
	w->count = SENTRY_COUNT;
	w->first = s->random;
	for (u32 i = 0; i < 64; i++)
		w->stack[i] = next_random(s);
}

/* What FXSAVE stores, but for the pointers to the last x87 instruction and operand,
   which processors keep or not as they like. */
static void same_fx(u32 code, const char *what, const u8 *got, const u8 *want, const struct watched *w, u64 times)
{
	for (u32 i = 0; i < 6; i++) /* control, status, tags */
		same(code, what, i, got[i], want[i]);
	same(code, what, 24, *(const u32 *)(got + 24), *(const u32 *)(want + 24)); /* MXCSR */
	for (u32 i = 0; i < 128; i++)
		if (i % 16 < 10)
			same(code + 1, what, 32 + i, got[32 + i], want[32 + i]);
	for (u32 i = 0; i < 32; i++)
		same(code + 2, what, 160 + 8 * i, ((const u64 *)(got + 160))[i],
		     ((const u64 *)(want + 160))[i] + times * w->step[i]);
}

static void check(struct sentry *s, u32 error, u32 status, int called)
{
	static const u8 kept[] = { 1, 3, 4, 5, 6, 7, 8, 11, 12, 13, 14 }; /* by a system call */
	const struct watched *w = &s->w;
	u64 seed = s->random;

	for (u32 i = 0; i < 15; i++)
		same(1, register_name[i], ~0u, w->out[i], w->gpr[i] + SENTRY_TIMES * sentry_step(i));
	same(2, "rflags", ~0u, w->out[15] & FLAGS_WATCHED, w->flags & FLAGS_WATCHED);
	same(3, "rsp", ~0u, w->out[16], w->rsp);
	same_fx(4, "fxsave", w->fx_out, w->fx_in, w, SENTRY_TIMES);
	if (called) {
		for (u32 i = 0; i < sizeof kept; i++)
			same(7, register_name[kept[i]], ~0u, w->after[kept[i]], kept[i] == 3 ? w->arg2 : w->out[kept[i]]);
		same(8, "rsp after the call", ~0u, w->after[16], w->rsp);
		same(9, "status", ~0u, (u32)w->after[0], 0);
		same_fx(10, "fxsave after the call", w->fx_after, w->fx_out, w, 0);
	}
	s->random = w->first;
	for (u32 i = 0; i < 64; i++)
		same(13, "stack", 8 * i, w->stack[i], next_random(s));
	s->random = seed;
	same(14, "LastErrorValue", ~0u, *teb_word(0x68), error);
	same(15, "LastStatusValue", ~0u, *teb_word(0x1250), status);
}

static void round(struct sentry *s)
{
	struct watched *w = &s->w;
	long long pause = PAUSE, time = 0;
	u64 started = *tick_count;

	/* Until the clock ticks, so that on any machine it is found at work. */
	do {
		u32 error = (u32)next_random(s), status = (u32)next_random(s);

		prepare(s);
		w->target = 0;
		w->arg1 = w->arg2 = 0;
		if (s->turn % 8 == 3) {
			w->target = (u64)NtYieldExecution;
		} else if (s->turn % 8 == 5) {
			w->target = (u64)NtQuerySystemTime;
			w->arg1 = (u64)&time;
		} else if (*tick_count != started) {
			w->target = (u64)NtDelayExecution;
			w->arg2 = (u64)&pause;
		}
		*teb_word(0x68) = error;
		*teb_word(0x1250) = status;
		watch_context(w);
		check(s, error, status, w->target != 0);
		s->turn++;
		progress++;
	} while (w->target != (u64)NtDelayExecution);
}

u32 WINAPI start(void *peb)
{
	struct sentry s;

	s.random = ((usize)&s ^ (u64)GetCurrentProcessId() << 32 ^ GetTickCount64() << 40) | 1;
	s.turn = 0;
	(void)peb;
	for (;;)
		round(&s);
}
