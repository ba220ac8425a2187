/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Internals of kvm-memhook shared by its files. See docs/MODULE.md for lifetimes
 * and lock order.
 */
#ifndef KMH_H
#define KMH_H

#include <linux/atomic.h>
#include <linux/fs.h>
#include <linux/kvm_host.h>
#include <linux/list.h>
#include <linux/mmu_notifier.h>
#include <linux/rwsem.h>
#include <linux/spinlock.h>
#include <linux/wait.h>

#include "uapi/kvm_memhook.h"

/* A part of guest-physical space as its memslot was when a page of it was mapped. */
struct kmh_window {
	gfn_t gfn;
	unsigned long npages;	/* 0: free entry */
	unsigned long hva;
};

#define KMH_MAX_WINDOWS 1024

/*
 * One attachment: what the descriptor of a VM points at. It lives from ATTACH
 * until the descriptor's last reference goes (mappings hold one each).
 */
struct kmh_vm {
	struct kvm *kvm;	/* held through vm_file */
	struct file *vm_file;	/* reference */
	struct mm_struct *mm;	/* mmgrab()ed: the VMM's; users only while needed */
	struct mmu_notifier mn;

	struct hlist_node by_kvm;	/* kmh_vms, RCU */
	bool gone;		/* the VMM's mm is dead; set once */
	wait_queue_head_t wait;	/* readers and pollers; woken by events and by gone */

	/* mapping.c */
	struct address_space mapping;	/* of this descriptor alone */
	struct rw_semaphore map_lock;	/* insertion (read) against invalidation (write) */
	unsigned int invalidating;	/* invalidations under way; map_lock */
	u64 map_seq;		/* invalidations ended; map_lock */
	spinlock_t windows_lock;
	unsigned int nr_windows;
	struct kmh_window *windows;
};

/* main.c */
extern const struct file_operations kmh_vm_fops;

/* vm.c */
struct module;
bool kmh_kvm_module(struct module **mod);
int kmh_vm_attach(const struct kvm_memhook_attach *arg);
void kmh_vm_release(struct kmh_vm *vm);
bool kmh_vm_gone(struct kmh_vm *vm);

/* memory.c */

/*
 * Guest memory slots, to be used between kmh_slots_enter() and kmh_slots_exit():
 * inside, the VMM can neither remove nor move one to completion.
 */
static inline int kmh_slots_enter(struct kmh_vm *vm)
{
	return srcu_read_lock(&vm->kvm->srcu);
}

static inline void kmh_slots_exit(struct kmh_vm *vm, int idx)
{
	srcu_read_unlock(&vm->kvm->srcu, idx);
}

struct kvm_memory_slot *kmh_slot_of(struct kmh_vm *vm, gfn_t gfn);
unsigned long kmh_hva(const struct kvm_memory_slot *slot, gfn_t gfn);
u64 kmh_slots_generation(struct kmh_vm *vm);
long kmh_get_pages(struct kmh_vm *vm, unsigned long hva, unsigned long n,
		   unsigned int flags, struct page **pages);
long kmh_memory_rw(struct kmh_vm *vm, struct kvm_memhook_rw __user *uarg, bool write);
long kmh_memory_slots(struct kmh_vm *vm, struct kvm_memhook_slots __user *uarg);

/* mapping.c */
int kmh_map_init(struct kmh_vm *vm, struct inode *host);
void kmh_map_destroy(struct kmh_vm *vm);
int kmh_mmap(struct file *file, struct vm_area_struct *vma);
int kmh_map_invalidate_start(struct kmh_vm *vm, const struct mmu_notifier_range *range);
void kmh_map_invalidate_end(struct kmh_vm *vm);
void kmh_map_zap_all(struct kmh_vm *vm);
void kmh_map_sync(struct kmh_vm *vm);

#endif /* KMH_H */
