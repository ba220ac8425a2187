// SPDX-License-Identifier: GPL-2.0-only
#define _GNU_SOURCE
#include <stdarg.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "../harness.h"
#include "qmp.h"

static char line[1 << 16];

/* Reads one line: QMP puts one JSON object on each. */
static void read_line(int fd)
{
	size_t n = 0;

	for (;;) {
		char c;

		if (read(fd, &c, 1) != 1)
			FAIL("QEMU's monitor has closed");
		if (c == '\n')
			break;
		if (n + 1 < sizeof(line))
			line[n++] = c;
	}
	line[n] = 0;
}

/* Sends a command and skips events up to its answer. */
static void execute(int fd, const char *json)
{
	WANT_EQ(write(fd, json, strlen(json)), strlen(json));
	do
		read_line(fd);
	while (strncmp(line, "{\"return\"", 9) && strncmp(line, "{\"error\"", 8));
	if (line[2] == 'e')
		FAIL("QEMU refuses %s: %s", json, line);
}

int qmp_connect(const char *path)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	WANT(fd >= 0);
	WANT(strlen(path) < sizeof(to.sun_path));
	strcpy(to.sun_path, path);
	WANT_EQ(connect(fd, (struct sockaddr *)&to, sizeof(to)), 0);
	read_line(fd); /* the greeting */
	execute(fd, "{\"execute\":\"qmp_capabilities\"}\n");
	return fd;
}

static const char *human(int fd, const char *format, va_list args)
{
	char command[256], json[512];

	vsnprintf(command, sizeof(command), format, args);
	snprintf(json, sizeof(json),
		 "{\"execute\":\"human-monitor-command\",\"arguments\":{\"command-line\":\"%s\"}}\n", command);
	execute(fd, json);
	return line + strlen("{\"return\": \"");
}

const char *qmp_human(int fd, const char *format, ...)
{
	const char *said;
	va_list args;

	va_start(args, format);
	said = human(fd, format, args);
	va_end(args);
	return said;
}

void qmp_do(int fd, const char *format, ...)
{
	const char *said;
	va_list args;

	va_start(args, format);
	said = human(fd, format, args);
	va_end(args);
	if (*said != '"')
		FAIL("QEMU's monitor, to %s: %s", format, said);
}

uint64_t qmp_hva(int fd, uint64_t gpa)
{
	const char *said = qmp_human(fd, "gpa2hva %#llx", (unsigned long long)gpa);
	const char *is = strstr(said, " is 0x");

	return is ? strtoull(is + 4, NULL, 16) : 0;
}
