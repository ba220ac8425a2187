/* SPDX-License-Identifier: (GPL-2.0-only WITH Linux-syscall-note) OR MIT */
/*
 * User interface of the kvm-memhook module.
 *
 * KVM_MEMHOOK_API names the interface as a whole. Rules for raising it:
 *  - the minor number rises when something is added that an old client cannot
 *    notice: a new ioctl, a new flag, a new event type, a reserved field that
 *    gains a meaning for a non-zero value;
 *  - the major number rises when anything that exists changes its meaning or
 *    layout; the module then refuses clients of another major.
 * Reserved fields are zero in both directions; the module refuses others.
 * Everything is fixed width, naturally aligned and the same for 32-bit callers.
 */
#ifndef _UAPI_KVM_MEMHOOK_H
#define _UAPI_KVM_MEMHOOK_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define KVM_MEMHOOK_API_MAJOR	1
#define KVM_MEMHOOK_API_MINOR	0
#define KVM_MEMHOOK_API		((KVM_MEMHOOK_API_MAJOR << 16) | KVM_MEMHOOK_API_MINOR)

#define KVM_MEMHOOK_DEVICE	"/dev/kvm-memhook"

/* Bounds of one call. */
#define KVM_MEMHOOK_MAX_RANGES		1024U		/* ranges in one READ or WRITE */
#define KVM_MEMHOOK_MAX_RANGE_BYTES	(64U << 20)	/* bytes in one range */
#define KVM_MEMHOOK_MAX_ACTIONS		64U		/* pending on one descriptor */
#define KVM_MEMHOOK_MAX_SAVED		16U		/* contexts kept on one descriptor */
#define KVM_MEMHOOK_MAX_GUARDS		4U		/* guards of one action */
#define KVM_MEMHOOK_MAX_WATCHES		64U		/* DTBs in one set of hooks */
#define KVM_MEMHOOK_RING_EVENTS		1024U		/* events kept for one descriptor */

/* Argument of KVM_MEMHOOK_ATTACH; the ioctl returns the VM's descriptor. */
struct kvm_memhook_attach {
	__u32 api;	/* KVM_MEMHOOK_API the caller was built with */
	__s32 vm_fd;	/* a KVM VM, from KVM_CREATE_VM or pidfd_getfd(2) */
	__u32 flags;	/* 0 */
	__u32 reserved;
};

#define KVM_MEMHOOK_VENDOR_AMD		1
#define KVM_MEMHOOK_VENDOR_INTEL	2

#define KVM_MEMHOOK_STATE_GONE		(1U << 0) /* the VM's process has ended */

struct kvm_memhook_info {
	__u32 api;		/* the module's own */
	__u32 vendor;		/* KVM_MEMHOOK_VENDOR_* */
	__u32 state;		/* KVM_MEMHOOK_STATE_* */
	__u32 vcpus;		/* vCPUs online */
	__u64 slots_generation;	/* changes with the guest-physical layout */
	__u64 events_lost;	/* since attach */
	__u64 reserved[2];
};

/* One run of guest RAM. */
struct kvm_memhook_slot {
	__u64 gpa;
	__u64 size;
	__u32 flags;		/* KVM_MEMHOOK_SLOT_* */
	__u32 reserved;
};

#define KVM_MEMHOOK_SLOT_READONLY	(1U << 0) /* ROM: refused for WRITE */

struct kvm_memhook_slots {
	__u64 slots;		/* struct kvm_memhook_slot *, ascending by gpa on return */
	__u32 count;		/* in: room; out: runs there are, also with -ENOSPC */
	__u32 reserved;
	__u64 generation;	/* out: the layout's, as in kvm_memhook_info */
};

struct kvm_memhook_range {
	__u64 gpa;
	__u64 buf;		/* user address */
	__u32 len;		/* bytes, 1 to KVM_MEMHOOK_MAX_RANGE_BYTES */
	__s32 error;		/* out: 0 or a negative errno; -ENXIO: no guest RAM there */
};

struct kvm_memhook_rw {
	__u64 ranges;		/* struct kvm_memhook_range * */
	__u32 count;
	__u32 failed;		/* out: ranges whose error is not 0 */
};

struct kvm_memhook_segment {
	__u64 base;
	__u32 limit;
	__u16 selector;
	__u16 attrib;		/* VMCB form: type, S, DPL, P, AVL, L, D/B, G */
};

struct kvm_memhook_table {
	__u64 base;
	__u32 limit;
	__u32 reserved;
};

#define KVM_MEMHOOK_REGS_HALTED	(1U << 0) /* not executing: HLT, paused, or in its VMM */
#define KVM_MEMHOOK_REGS_NESTED	(1U << 1) /* runs a guest of its own: state is that guest's */

/* Snapshot of one vCPU. */
struct kvm_memhook_regs {
	__u32 vcpu;		/* in: index, 0 to kvm_memhook_info.vcpus - 1 */
	__u32 timeout_ms;	/* in: 1 to 1000; a vCPU that runs is interrupted once a ms */
	__u32 flags;		/* out: KVM_MEMHOOK_REGS_* */
	__u32 cpl;		/* out */
	__u64 gpr[16];		/* RAX RCX RDX RBX RSP RBP RSI RDI R8 to R15 */
	__u64 rip;
	__u64 rflags;
	__u64 cr0;
	__u64 cr2;
	__u64 cr3;
	__u64 cr4;
	__u64 efer;
	__u64 star;
	__u64 lstar;
	__u64 cstar;
	__u64 kernel_gs_base;
	__u64 sysenter_eip;
	struct kvm_memhook_segment cs;
	struct kvm_memhook_segment ss;
	struct kvm_memhook_segment fs;
	struct kvm_memhook_segment gs;
	struct kvm_memhook_segment tr;
	struct kvm_memhook_table gdt;
	struct kvm_memhook_table idt;
	__u64 reserved[4];
};

/*
 * Hooks. A descriptor has one set of hooks; setting it replaces the one before,
 * and an empty mask removes it. NEW_DTB reports each DTB the first time it is
 * seen loaded since the set was made (from a table of the most recent 512;
 * a DTB pushed out of it is reported again); the other two only the DTBs listed.
 * A DTB is seen when a vCPU enters the guest with it loaded, not at every CR3
 * write: what comes and goes between two exits of a vCPU is not seen.
 */
#define KVM_MEMHOOK_HOOK_NEW_DTB	(1U << 0) /* a DTB not seen before */
#define KVM_MEMHOOK_HOOK_SWITCH		(1U << 1) /* a vCPU has one of dtb[] loaded, and had not at its entry before */
#define KVM_MEMHOOK_HOOK_USER		(1U << 2) /* same, and CPL is 3 */

struct kvm_memhook_hooks {
	__u32 mask;		/* KVM_MEMHOOK_HOOK_* */
	__u32 count;		/* DTBs that follow */
	__u64 dtb;		/* __u64 *, physical addresses; flag bits are ignored */
	__u32 period_us;	/* interrupt vCPUs that run this often, 500 to 1000000; 0: never */
	__u32 reserved;
};

/*
 * Actions on a guest process, named by its DTBs. But for HOLD they are delivered
 * to a vCPU that is about to enter the guest at CPL 3 with one of the DTBs
 * loaded, with no event injection in flight, no interrupt shadow, no nested
 * guest, and CR0.TS clear. While one is pending, vCPUs that run are interrupted
 * about once a millisecond.
 */
#define KVM_MEMHOOK_ACTION_REDIRECT	1 /* set registers of a thread */
#define KVM_MEMHOOK_ACTION_PAGE_IN	2 /* raise a page fault at address */
#define KVM_MEMHOOK_ACTION_CAPTURE	3 /* change nothing: report the thread's registers */
#define KVM_MEMHOOK_ACTION_RESTORE	4 /* give a thread its saved context back */
/*
 * HOLD: no thread of the process executes an instruction in user mode until the
 * action is cancelled or expires, which releases it. The top-level entries of
 * the user half of the table that user mode runs on are made non-executable, and
 * every vCPU's TLB is flushed; it is applied once that has happened. The guest
 * sees instruction fetch faults on pages that are present and executable, finds
 * nothing to do and schedules other threads meanwhile. Long mode only.
 */
#define KVM_MEMHOOK_ACTION_HOLD		5

/* REDIRECT, CAPTURE: every thread, one by one, until the deadline; default is one. */
#define KVM_MEMHOOK_ACTION_ALL_THREADS	(1U << 0)
/* Deliver only to a thread whose RIP is in [rip_min, rip_max]. */
#define KVM_MEMHOOK_ACTION_RIP_RANGE	(1U << 1)
/* Deliver only to the thread whose TEB (GS base in long mode, else FS base) is teb. */
#define KVM_MEMHOOK_ACTION_TEB		(1U << 2)
/* Deliver only to a thread that executes 64-bit code (CS.L), or only to one that does not. */
#define KVM_MEMHOOK_ACTION_CODE64	(1U << 3)
#define KVM_MEMHOOK_ACTION_CODE32	(1U << 4)
/*
 * REDIRECT of one thread to rip and nothing else: its whole context (general
 * registers, RIP, RFLAGS, x87, SSE and AVX state) is kept under the action's
 * cookie. rip, the park address, must be an instruction that jumps to itself:
 * the thread is parked while its RIP is there. The context must be given back by
 * RESTORE; when the descriptor is closed first, the module does so itself.
 */
#define KVM_MEMHOOK_ACTION_SAVE		(1U << 5)
/* REDIRECT, CAPTURE: only the thread whose context is kept as saved, while it is parked. */
#define KVM_MEMHOOK_ACTION_PARKED	(1U << 6)

/* Bits of kvm_memhook_action.set beyond the 16 general registers. */
#define KVM_MEMHOOK_SET_RIP		(1U << 16)
#define KVM_MEMHOOK_SET_RFLAGS		(1U << 17) /* only the arithmetic flags and DF */
#define KVM_MEMHOOK_SET_CODE64		(1U << 18) /* CS becomes flat 64-bit user code of selector cs */

/*
 * A condition on guest memory, looked at in the moment of delivery while this
 * vCPU stands still: (*(u64 *)gpa & mask) == value. If it does not hold the
 * action ends as cancelled and nothing is done. A HOLD's guards are looked at before
 * it is applied and about once a millisecond for as long as it lasts; the first
 * that does not hold releases it.
 */
struct kvm_memhook_guard {
	__u64 gpa;		/* guest RAM, a multiple of 8 */
	__u64 mask;		/* not 0 */
	__u64 value;		/* no bits outside mask */
};

struct kvm_memhook_action {
	__u32 type;		/* KVM_MEMHOOK_ACTION_* */
	__u32 flags;
	__u64 cookie;		/* returned in the outcome; unique while pending or saved */
	__u64 dtb;		/* kernel DTB of the process; flag bits are ignored */
	__u64 user_dtb;		/* KVA-shadow DTB, or 0 */
	__u32 timeout_ms;	/* 1 to 600000 */
	__u32 set;		/* REDIRECT: registers to set */
	__u64 gpr[16];
	__u64 rip;
	__u64 rflags;
	__u64 address;		/* PAGE_IN: user address */
	__u32 error_code;	/* PAGE_IN: of the page fault; user (4) is required, write (2), fetch (16) allowed */
	__u32 cs;		/* SET_CODE64: selector, RPL 3 */
	__u64 rip_min;
	__u64 rip_max;
	__u64 teb;
	__u64 saved;		/* PARKED, RESTORE: cookie of the SAVE */
	__u32 guards;		/* valid entries of guard[] */
	__u32 reserved;
	struct kvm_memhook_guard guard[KVM_MEMHOOK_MAX_GUARDS];
};

struct kvm_memhook_cancel {
	__u64 cookie;
	__u32 flags;		/* KVM_MEMHOOK_CANCEL_ALL: whatever the cookie */
	__u32 cancelled;	/* out: actions that were still pending */
};

#define KVM_MEMHOOK_CANCEL_ALL		(1U << 0)

/* Events, read(2) whole from the VM's descriptor or out of its ring. */
#define KVM_MEMHOOK_EVENT_GONE		1 /* the VM's process has ended; last event */
#define KVM_MEMHOOK_EVENT_NEW_DTB	2
#define KVM_MEMHOOK_EVENT_SWITCH	3
#define KVM_MEMHOOK_EVENT_USER		4
#define KVM_MEMHOOK_EVENT_APPLIED	5 /* action: regs are the thread's own, before it */
#define KVM_MEMHOOK_EVENT_EXPIRED	6 /* action: deadline passed; count threads were reached */
#define KVM_MEMHOOK_EVENT_CANCELLED	7 /* action: see reason */

#define KVM_MEMHOOK_REASON_ASKED	0 /* CANCEL */
#define KVM_MEMHOOK_REASON_GUARD	1 /* a guard did not hold */
#define KVM_MEMHOOK_REASON_MOVED	2 /* the VMM changed what backs a guard's or a held table's page */
#define KVM_MEMHOOK_REASON_STATE	3 /* this vCPU's state cannot be read or set (confidential guest, foreign KVM) */

struct kvm_memhook_event {
	__u32 type;		/* KVM_MEMHOOK_EVENT_* */
	__u32 vcpu;
	__u64 time_ns;		/* CLOCK_MONOTONIC */
	__u64 cookie;		/* of an action */
	__u64 lost;		/* events lost before this one, since attach */
	__u64 dtb;		/* as loaded, without flag bits */
	__u64 rip;
	__u64 teb;
	__u64 rflags;
	__u64 gpr[16];
	__u32 cpl;
	__u32 count;		/* threads reached so far */
	__u32 reason;		/* KVM_MEMHOOK_REASON_* */
	__u16 cs;
	__u16 code64;		/* CS.L */
};

/*
 * The ring of events, mapped at offset KVM_MEMHOOK_RING_OFFSET of the VM's
 * descriptor, readable and writable: this page, then the events. An event at
 * index i is in slot i % capacity; those from tail to head (both counted without
 * end) are there to be read. The reader reads head, then the events, then moves
 * tail up to it. poll(2) waits for head != tail. read(2) takes events out of the
 * same ring.
 */
#define KVM_MEMHOOK_RING_OFFSET		(1ULL << 56)

struct kvm_memhook_ring {
	__u32 head;		/* written by the module */
	__u32 tail;		/* written by the reader */
	__u32 capacity;		/* KVM_MEMHOOK_RING_EVENTS */
	__u32 event_size;	/* bytes */
	__u64 lost;		/* events that found the ring full, since attach */
	__u64 events_offset;	/* bytes from the start of the mapping */
};

#define KVM_MEMHOOK_IOC		0xB7
/* On the device. */
#define KVM_MEMHOOK_GET_API	_IO(KVM_MEMHOOK_IOC, 0x00)
#define KVM_MEMHOOK_ATTACH	_IOW(KVM_MEMHOOK_IOC, 0x01, struct kvm_memhook_attach)
/* On the descriptor of a VM. */
#define KVM_MEMHOOK_GET_INFO	_IOR(KVM_MEMHOOK_IOC, 0x10, struct kvm_memhook_info)
#define KVM_MEMHOOK_GET_SLOTS	_IOWR(KVM_MEMHOOK_IOC, 0x11, struct kvm_memhook_slots)
#define KVM_MEMHOOK_READ	_IOWR(KVM_MEMHOOK_IOC, 0x12, struct kvm_memhook_rw)
#define KVM_MEMHOOK_WRITE	_IOWR(KVM_MEMHOOK_IOC, 0x13, struct kvm_memhook_rw)
#define KVM_MEMHOOK_SYNC	_IO(KVM_MEMHOOK_IOC, 0x14)
#define KVM_MEMHOOK_GET_REGS	_IOWR(KVM_MEMHOOK_IOC, 0x15, struct kvm_memhook_regs)
#define KVM_MEMHOOK_SET_HOOKS	_IOW(KVM_MEMHOOK_IOC, 0x16, struct kvm_memhook_hooks)
#define KVM_MEMHOOK_ADD_ACTION	_IOW(KVM_MEMHOOK_IOC, 0x17, struct kvm_memhook_action)
#define KVM_MEMHOOK_CANCEL	_IOWR(KVM_MEMHOOK_IOC, 0x18, struct kvm_memhook_cancel)

#endif /* _UAPI_KVM_MEMHOOK_H */
