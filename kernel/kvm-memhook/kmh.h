/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Internals of kvm-memhook shared by its files. See docs/MODULE.md for lifetimes
 * and lock order.
 */
#ifndef KMH_H
#define KMH_H

#include <linux/atomic.h>
#include <linux/fs.h>
#include <linux/irq_work.h>
#include <linux/kvm_host.h>
#include <linux/list.h>
#include <linux/mmu_notifier.h>
#include <linux/mutex.h>
#include <linux/poll.h>
#include <linux/rwsem.h>
#include <linux/spinlock.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "uapi/kvm_memhook.h"

/* A part of guest-physical space as its memslot was when a page of it was mapped. */
struct kmh_window {
	gfn_t gfn;
	unsigned long npages;	/* 0: free entry */
	unsigned long hva;
};

#define KMH_MAX_WINDOWS 1024

struct kmh_hooks;
struct kvm_memhook_client;

/*
 * One attachment: what the descriptor of a VM points at. It lives from ATTACH
 * until the descriptor's last reference goes (mappings hold one each), and then
 * for as long as threads of the guest wait for their contexts (worker.c).
 */
struct kmh_vm {
	struct kvm *kvm;	/* held through vm_file */
	struct file *vm_file;	/* reference */
	struct mm_struct *mm;	/* mmgrab()ed: the VMM's; users only while needed */
	struct mmu_notifier mn;

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

	/* probe.c */
	struct hlist_node by_kvm;
	unsigned int probe_users;	/* kmh_probe_mutex */

	/*
	 * What the probe looks at and changes. Taken with interrupts off, and
	 * nothing that sleeps or wakes is done under it.
	 */
	raw_spinlock_t lock;

	/* event.c; ring_head and events_lost under lock */
	const struct kvm_memhook_client *client;	/* NULL: events go to the ring */
	struct kvm_memhook_ring *ring;
	u32 ring_head;
	u64 events_lost;
	struct irq_work wake;

	/* hook.c; the pointer under lock, its setting under work_mutex */
	struct kmh_hooks *hooks;

	/* action.c, worker.c */
	struct mutex work_mutex;	/* process context's turn with the lists below */
	struct list_head pending;	/* lock: actions to be delivered */
	struct list_head done;		/* lock: actions that have ended, to be freed */
	struct list_head saved;		/* lock: contexts of parked threads */
	unsigned int nr_actions;	/* work_mutex: pending and done */
	unsigned int nr_saved;		/* lock */
	bool entered;			/* lock: a vCPU entered the guest since the last pass */
	bool working;			/* work_mutex: work is queued or runs */
	bool released;			/* work_mutex: the descriptor has gone */
	bool closing;			/* work_mutex: and the worker frees the attachment */
	unsigned int linger;		/* work_mutex: passes left without anything to do */
	unsigned int close_passes;	/* work_mutex: left to wait for parked threads */
	unsigned long pass;		/* work_mutex */
	struct work_struct work;
};

/* main.c */
extern const struct file_operations kmh_vm_fops;
extern struct workqueue_struct *kmh_wq;

/* vm.c */
struct module;
bool kmh_kvm_module(struct module **mod);
int kmh_vm_attach(const struct kvm_memhook_attach *arg);
struct kmh_vm *kmh_vm_create(int vm_fd, const struct kvm_memhook_client *client);
void kmh_vm_release(struct kmh_vm *vm);
void kmh_vm_free(struct kmh_vm *vm);
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
int kmh_get_guest_page(struct kmh_vm *vm, gfn_t gfn, bool write, struct page **page,
		       unsigned long *hva);
long kmh_memory_rw(struct kmh_vm *vm, struct kvm_memhook_rw __user *uarg, bool write);
long kmh_memory_slots(struct kmh_vm *vm, struct kvm_memhook_slots __user *uarg);

/* mapping.c */
int kmh_map_init(struct kmh_vm *vm);
void kmh_map_destroy(struct kmh_vm *vm);
int kmh_mmap(struct file *file, struct vm_area_struct *vma);
int kmh_map_invalidate_start(struct kmh_vm *vm, const struct mmu_notifier_range *range);
void kmh_map_invalidate_end(struct kmh_vm *vm);
void kmh_map_zap_all(struct kmh_vm *vm);
void kmh_map_sync(struct kmh_vm *vm);

/* cpu.c, svm.c, vmx.c: the state of a vCPU that does not execute at the moment. */

/* What decides on hooks and actions at an entry. */
struct kmh_state {
	u64 dtb;		/* CR3 without flag bits */
	u64 dtb_mask;		/* the bits of a DTB in this paging mode */
	u64 rip;
	u64 rflags;
	u64 teb;
	u64 efer;
	u64 user_end;		/* first address that is not user space */
	u16 cs;
	u8 cpl;
	bool code64;
	bool calm;		/* in user mode, nothing in flight: an action may be delivered */
};

/* What to change; mask has KVM_MEMHOOK_SET_* and a bit for each general register. */
struct kmh_set {
	u32 mask;
	u16 cs;
	u64 gpr[16];
	u64 rip;
	u64 rflags;
};

struct kmh_cpu_ops {
	u32 vendor;		/* KVM_MEMHOOK_VENDOR_* */
	/*
	 * The state of a vCPU that does not execute can be read from any CPU at
	 * any time; otherwise only in the probe.
	 */
	bool anywhere;
	/* These return false where the state cannot be had. */
	bool (*state)(struct kvm_vcpu *vcpu, struct kmh_state *st);
	bool (*regs)(struct kvm_vcpu *vcpu, struct kvm_memhook_regs *regs);
	/* In the probe only. */
	void (*set)(struct kvm_vcpu *vcpu, const struct kmh_set *set);
	void (*page_fault)(struct kvm_vcpu *vcpu, u64 address, u32 error_code);
};

extern const struct kmh_cpu_ops kmh_svm_ops, kmh_vmx_ops;
extern const struct kmh_cpu_ops *kmh_cpu;
int kmh_cpu_init(void);
bool kmh_cpu_protected(const struct kvm_vcpu *vcpu);
bool kmh_cpu_nested(const struct kvm_vcpu *vcpu);
void kmh_cpu_paging(struct kmh_state *st, u64 cr3, u64 cr4);
unsigned long kmh_cpu_rip(const struct kvm_vcpu *vcpu);
void kmh_cpu_set_rip(struct kvm_vcpu *vcpu, unsigned long rip);
void kmh_kick(struct kmh_vm *vm, bool flush_tlb);
long kmh_vcpu_regs(struct kmh_vm *vm, struct kvm_memhook_regs __user *uarg);
void kmh_regs_entry(struct kmh_vm *vm, struct kvm_vcpu *vcpu);

/* fpu.c: the guest's x87, SSE and AVX state, which is live in this CPU in the probe. */
#define KMH_FPU_BYTES PAGE_SIZE
int kmh_fpu_init(void);
bool kmh_fpu_live(void);
void kmh_fpu_save(void *area);
bool kmh_fpu_restore(void *area);

/* probe.c */
int kmh_probe_get(struct kmh_vm *vm);
void kmh_probe_put(struct kmh_vm *vm);

/* event.c */
int kmh_ring_init(struct kmh_vm *vm);
void kmh_ring_destroy(struct kmh_vm *vm);
void kmh_event(struct kmh_vm *vm, struct kvm_memhook_event *ev);
void kmh_event_gone(struct kmh_vm *vm);
ssize_t kmh_event_read(struct file *file, char __user *buf, size_t len, loff_t *pos);
__poll_t kmh_event_poll(struct file *file, struct poll_table_struct *wait);
int kmh_ring_mmap(struct kmh_vm *vm, struct vm_area_struct *vma);

/* hook.c */
long kmh_hooks_set(struct kmh_vm *vm, const struct kvm_memhook_hooks *arg, const u64 *dtb);
long kmh_hooks_ioctl(struct kmh_vm *vm, const struct kvm_memhook_hooks __user *uarg);
void kmh_hooks_drop(struct kmh_vm *vm);
void kmh_hooks_entry(struct kmh_vm *vm, struct kvm_vcpu *vcpu, const struct kmh_state *st);
u32 kmh_hooks_period(struct kmh_vm *vm);

/* action.c */
void kmh_actions_init(struct kmh_vm *vm);
long kmh_action_add(struct kmh_vm *vm, struct kvm_memhook_action __user *uarg);
long kmh_action_cancel(struct kmh_vm *vm, struct kvm_memhook_cancel __user *uarg);
void kmh_actions_destroy(struct kmh_vm *vm);

/* guard.c */
void kmh_actions_invalidate(struct kmh_vm *vm, unsigned long start, unsigned long end);

/* deliver.c */
void kmh_actions_entry(struct kmh_vm *vm, struct kvm_vcpu *vcpu, struct kmh_state *st);

/* worker.c */
void kmh_worker_init(struct kmh_vm *vm);
int kmh_work_start(struct kmh_vm *vm);
bool kmh_actions_close(struct kmh_vm *vm);

#endif /* KMH_H */
