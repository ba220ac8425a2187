/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A guest of a few instructions for the tests of vCPU state, hooks and actions:
 * long mode, one address space or two, user code that spins, a page fault handler.
 */
#ifndef GUEST_H
#define GUEST_H

#include <pthread.h>

#include "vmm.h"

/*
 * Guest-physical = guest-virtual, and all of it again in the upper half, where the
 * handler runs. Two top-level tables over the same memory.
 */
#define G_PML4		0x1000
#define G_PML4_B	0x5000
#define G_UPPER		0xffff800000000000ULL
#define G_USER		0x20000	/* the code */
#define G_STACK		0x38000	/* user stack, top */
#define G_DATA		0x30000
#define G_LAZY		0x400000 /* a page that the handler makes present at the first fault */

/* Words at G_DATA. */
enum { D_SPIN, D_OTHER, D_ARG, D_BROKEN, D_FAULTS, D_CR2, D_ERROR, D_CHECKS, D_GUARD };

/* What the vCPU does from its start. */
enum guest_code { CODE_SPIN, CODE_SPIN32, CODE_CHECK, CODE_EXITS, CODE_KERNEL };

#define TEB_VALUE	0x7ff123456000ULL
#define SEL_UCODE32	0x1b
#define SEL_UCODE64	0x2b

struct guest {
	struct vmm v;
	int vcpus;
	int fd[4];
	struct kvm_run *run[4];
	pthread_t thread[4];
	volatile int stop;
};

/* Makes the guest with that many vCPUs, all of them set up for code. */
void guest_create(struct guest *g, int vcpus, enum guest_code code);
void guest_start(struct guest *g);
void guest_stop(struct guest *g);
void guest_set_cr3(struct guest *g, int vcpu, uint64_t cr3);
volatile uint64_t *guest_word(struct guest *g, int index);
/* Addresses of user code: what records and spins, and a jump to itself. */
uint64_t guest_other(void);
uint64_t guest_park(void);
/* Waits until the word grows, or fails the test. */
void guest_moves(struct guest *g, int index);

#endif
