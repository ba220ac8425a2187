// SPDX-License-Identifier: GPL-2.0-only
/*
 * Runs the tests, each in a process of its own, and prints a line for each:
 *   kmh-selftest [NAME-PREFIX...]
 */
#include <sys/wait.h>
#include <signal.h>

#include "harness.h"

static int selected(const char *name, int argc, char **argv)
{
	for (int i = 1; i < argc; i++)
		if (!strncmp(name, argv[i], strlen(argv[i])))
			return 1;
	return argc == 1;
}

static int run(const struct test *t)
{
	int status;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	if (pid == 0) {
		alarm(300); /* a hang is a failure, and its name is known */
		t->run();
		_exit(0);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		FAIL("cannot run %s: %s", t->name, strerror(errno));
	if (status)
		printf("FAIL %s (status %#x)\n", t->name, status);
	else
		printf("ok   %s\n", t->name);
	return status != 0;
}

int main(int argc, char **argv)
{
	const struct test *sets[] = { memory_tests, mapping_tests, lifetime_tests, vcpu_tests, hook_tests, action_tests };
	int failed = 0, count = 0;

	for (size_t i = 0; i < sizeof(sets) / sizeof(*sets); i++)
		for (const struct test *t = sets[i]; t->name; t++)
			if (selected(t->name, argc, argv)) {
				count++;
				failed += run(t);
			}
	printf("%d tests, %d failed\n", count, failed);
	return failed || !count;
}
