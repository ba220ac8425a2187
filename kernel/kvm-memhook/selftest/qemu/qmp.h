/* SPDX-License-Identifier: GPL-2.0-only */
/* QEMU's monitor, as far as the tests of its memory need it. */
#ifndef QMP_H
#define QMP_H

#include <stddef.h>
#include <stdint.h>

/* Connects to a QMP socket and enters command mode. */
int qmp_connect(const char *path);
/*
 * Runs a command of the human monitor; what it says is good until the next call.
 * A command that QEMU cannot run at all fails the test; what it says of itself
 * is for the caller to read.
 */
const char *qmp_human(int fd, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The same for a command that says nothing unless it fails. */
void qmp_do(int fd, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The QEMU process's address of guest-physical memory; 0 where there is no RAM. */
uint64_t qmp_hva(int fd, uint64_t gpa);

#endif
