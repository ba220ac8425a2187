/*
 * truth.c - what the guest knows about itself, as one JSON document.
 *
 * Members that do not change come as text from the builder; pids, addresses,
 * times and states are the runtime's own bookkeeping, not read back from the
 * structures that a reader under test looks at.
 */
#include "rt.h"

static void field(const char *name, u64 v)
{
	put_str(",\"");
	put_str(name);
	put_str("\":");
	put_dec(v);
}

static void two(u64 v)
{
	put_char((char)('0' + v / 10 % 10));
	put_char((char)('0' + v % 10));
}

/* A FILETIME as RFC 3339 in UTC; the calendar by days since 0000-03-01. */
static void put_time(const char *name, u64 t)
{
	u64 s = t / 10000000, frac = t % 10000000, day = s / 86400 + 584694; /* 1601-01-01 */
	u64 era = day / 146097, doe = day % 146097;
	u64 yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
	u64 doy = doe - (365 * yoe + yoe / 4 - yoe / 100), mp = (5 * doy + 2) / 153;
	u64 d = doy - (153 * mp + 2) / 5 + 1, m = mp < 10 ? mp + 3 : mp - 9;
	u64 y = yoe + era * 400 + (m <= 2);

	put_str(",\"");
	put_str(name);
	if (!t) {
		put_str("\":null");
		return;
	}
	put_str("\":\"");
	two(y / 100);
	two(y % 100);
	put_char('-');
	two(m);
	put_char('-');
	two(d);
	put_char('T');
	two(s / 3600 % 24);
	put_char(':');
	two(s / 60 % 60);
	put_char(':');
	two(s % 60);
	put_char('.');
	two(frac / 100000);
	two(frac / 1000);
	two(frac / 10);
	put_char((char)('0' + frac % 10));
	put_str("Z\"");
}

static void put_proc(const struct proc *p)
{
	u64 run = 0;
	const char *sep = "";

	put_str("{\"pid\":");
	put_dec(p->id.pid);
	field("ppid", p->id.ppid);
	field("eprocess", p->id.eprocess);
	field("dtb", p->id.dtb);
	field("user_dtb", p->id.user_dtb);
	field("peb", p->id.peb);
	field("peb32", p->id.peb32);
	put_time("created", p->id.create_time);
	put_time("exited", p->id.exit_time);
	field("exit_status", p->id.exit_status);
	field("threads", p->live_threads);
	put_str(",\"state\":\"");
	put_str(p->state == P_EXITED ? "exited" : p->state == P_ENDING ? "exiting" : "running");
	put_str("\",\"tids\":[");
	for (u32 i = 0; i < MAX_THREADS; i++) {
		const struct thread *t = &threads[i];
		if (t->proc != p || t->idle || t->state == T_FREE || t->state == T_ENDED)
			continue;
		put_str(sep);
		put_dec(t->tid);
		sep = ",";
		run += t->ticks;
	}
	put_char(']');
	field("ticks", run);
	field("handles", handle_count((struct proc *)p));
	field("faults", p->faults);
	field("syscalls", p->syscalls);
	put_char(',');
	put_bytes(PTR(const char, p->id.truth), p->id.truth_len);
	put_char('}');
}

void truth(void)
{
	u64 need = boot->truth_len + 4096;
	const char *sep = "";

	for (u32 i = 0; i < MAX_PROCS; i++)
		if (procs[i].state != P_FREE)
			need += procs[i].id.truth_len + 2048;
	if (serial_room() < need) {
		put_str("ERROR truth does not fit\n");
		return;
	}
	put_str("TRUTH-BEGIN\n{");
	put_bytes(PTR(const char, boot->truth), boot->truth_len);
	if (boot->truth_len)
		put_char(',');
	put_str("\"live\":true");
	field("ticks", ticks);
	put_time("time", system_time);
	put_str(",\"processes\":[");
	for (u32 i = 0; i < MAX_PROCS; i++) {
		if (procs[i].state == P_FREE)
			continue;
		put_str(sep);
		put_str("\n");
		put_proc(&procs[i]);
		sep = ",";
	}
	put_str("]}\nTRUTH-END\n");
}
