/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The smallest VMM that the tests need, made directly through /dev/kvm, and the
 * client's side of the module.
 */
#ifndef VMM_H
#define VMM_H

#include <linux/kvm.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "../uapi/kvm_memhook.h"

/* Guest-physical layout: RAM, a hole, a ROM, more RAM above 4 GiB. */
#define LOW_GPA		0x0ULL
#define LOW_SIZE	(8ULL << 20)
#define ROM_GPA		0xfffc0000ULL
#define ROM_SIZE	(256ULL << 10)
#define HIGH_GPA	(4ULL << 30)
#define HIGH_SIZE	(4ULL << 20)

struct vmm {
	int kvm, vm, vcpu;
	uint8_t *low, *rom, *high;
	struct kvm_run *run;
};

/* Makes a VM with that memory; backing is MAP_PRIVATE|MAP_ANONYMOUS or of memfd. */
void vmm_create(struct vmm *v, int memfd);
void vmm_slot(struct vmm *v, unsigned id, uint64_t gpa, uint64_t size, void *mem, unsigned flags);
/* Fills memory with a pattern that names each word's own address. */
void vmm_fill(struct vmm *v);
uint64_t pattern(uint64_t gpa);

/* A VMM in a process of its own that waits in pause(); returns its pid. */
pid_t vmm_spawn(int *vm_fd);

int memhook_device(void);
/* ATTACH with the module's own API; returns what the ioctl does. */
int memhook_attach(int vm_fd);
/* One range; returns its error (0 or negative errno). */
int memhook_read(int fd, uint64_t gpa, void *buf, uint32_t len);
int memhook_write(int fd, uint64_t gpa, const void *buf, uint32_t len);

#endif
