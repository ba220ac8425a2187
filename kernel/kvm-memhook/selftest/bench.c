// SPDX-License-Identifier: GPL-2.0-only
/*
 * What the module costs a guest: how much it gets done in the same time without the
 * module, with it, attached, with hooks, with an action pending. The configurations
 * take turns, round by round, in one run:
 *   kmh-bench MODULE [ROUNDS]
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <time.h>

#include "events.h"
#include "harness.h"

enum config { WITHOUT, LOADED, ATTACHED, NEW_DTB, NEW_DTB_1MS, PENDING, CONFIGS };

static const char *const names[CONFIGS] = {
	"without the module", "loaded", "attached", "new-DTB hook", "new-DTB hook, 1 ms", "action pending",
};

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

static void load(const char *module)
{
	int ko = open(module, O_RDONLY | O_CLOEXEC);

	WANT(ko >= 0);
	WANT(syscall(SYS_finit_module, ko, "", 0) == 0);
	close(ko);
}

static void unload(void)
{
	for (int i = 0; i < 200; i++) {
		if (!syscall(SYS_delete_module, "kvm_memhook", O_NONBLOCK) || errno == ENOENT)
			return;
		usleep(10000);
	}
	FAIL("the module cannot be unloaded: %s", strerror(errno));
}

/* The guest's steps a second in one configuration. */
static double measure(struct guest *g, enum config c)
{
	struct kvm_memhook_hooks h = { .mask = KVM_MEMHOOK_HOOK_NEW_DTB, .period_us = c == NEW_DTB_1MS ? 1000 : 0 };
	struct kvm_memhook_action a = action(KVM_MEMHOOK_ACTION_CAPTURE, 1);
	uint64_t begin;
	double t;
	int fd = -1;

	if (c >= ATTACHED) {
		fd = memhook_attach(g->v.vm);
		WANT(fd >= 0);
	}
	if (c == NEW_DTB || c == NEW_DTB_1MS)
		WANT(ioctl(fd, KVM_MEMHOOK_SET_HOOKS, &h) == 0);
	a.dtb = G_PML4_B;
	if (c == PENDING)
		WANT(action_add(fd, &a) == 0);
	usleep(20000);
	t = now();
	begin = *guest_word(g, D_SPIN);
	usleep(300000);
	begin = *guest_word(g, D_SPIN) - begin;
	t = now() - t;
	if (fd >= 0)
		close(fd);
	return begin / t;
}

static int ascending(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static double ratio[CONFIGS][100];

static void run(const char *module, int rounds, enum guest_code code, const char *what)
{
	struct guest g;

	guest_create(&g, 1, code);
	guest_start(&g);
	guest_moves(&g, D_SPIN);
	for (int r = 0; r < rounds; r++) {
		double base = 0;

		for (int c = 0; c < CONFIGS; c++) {
			double rate;

			if (c == WITHOUT)
				unload();
			else if (c == LOADED)
				load(module);
			rate = measure(&g, c);
			if (c == WITHOUT)
				base = rate;
			ratio[c][r] = rate / base;
		}
	}
	guest_stop(&g);
	printf("%s, work done against a guest without the module, %d rounds:\n", what, rounds);
	for (int c = 1; c < CONFIGS; c++) {
		qsort(ratio[c], rounds, sizeof(double), ascending);
		printf("  %-20s median %.3f (%.3f to %.3f)\n", names[c], ratio[c][rounds / 2], ratio[c][0], ratio[c][rounds - 1]);
	}
}

int main(int argc, char **argv)
{
	int rounds = argc > 2 ? atoi(argv[2]) : 11;

	if (argc < 2 || rounds < 1 || rounds > 100)
		FAIL("usage: kmh-bench MODULE [ROUNDS]");
	run(argv[1], rounds, CODE_SPIN, "a guest that computes");
	run(argv[1], rounds, CODE_EXITS, "a guest that leaves to KVM at each step");
	return 0;
}
