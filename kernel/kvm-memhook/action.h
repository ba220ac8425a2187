/* SPDX-License-Identifier: GPL-2.0-only */
/* What action.c, guard.c, worker.c, deliver.c and hold.c share. */
#ifndef KMH_ACTION_H
#define KMH_ACTION_H

#include "kmh.h"

/* Threads that ALL_THREADS tells apart; a process with more is not finished with. */
#define KMH_MAX_THREADS 256

/* A word of guest memory that is looked at in the probe. The page is held by a reference. */
struct kmh_guard {
	gfn_t gfn;
	unsigned int offset;
	u64 mask;
	u64 value;
	unsigned long hva;	/* of the page, once it was found; vm->lock */
	struct page *page;	/* vm->lock */
	bool stale;		/* what backs the page has changed; vm->lock */
};

/* The context of a parked thread. */
struct kmh_saved {
	struct list_head node;
	u64 cookie;
	u64 dtb, user_dtb;
	u64 teb;
	u64 park;		/* RIP while parked */
	struct kmh_set regs;	/* all of them */
	void *fpu;
};

struct kmh_hold {
	bool possible;		/* a vCPU was seen in long mode with NX enabled; vm->lock */
	bool applied;
	unsigned int passes;
	u64 was[256];		/* user half of the table, as we left it; 0: not touched */
};

struct kmh_action {
	struct list_head node;	/* vm->pending or vm->done */
	struct kvm_memhook_action a;
	ktime_t deadline;
	u32 count;		/* threads reached */
	u64 *seen;		/* ALL_THREADS: TEBs, count of them */
	struct kmh_guard guard[KVM_MEMHOOK_MAX_GUARDS];
	struct kmh_saved *saved;	/* SAVE: to be filled; PARKED, RESTORE: of the thread */
	struct kmh_hold *hold;
	bool ended;		/* on vm->done; vm->lock */
	unsigned long pass;	/* of the worker, that it was looked after in */
};

/* action.c: in process context, under work_mutex. */
void kmh_reap(struct kmh_vm *vm);
bool kmh_stop(struct kmh_vm *vm, struct kmh_action *act, u32 type, u32 reason);
struct kmh_action *kmh_next(struct kmh_vm *vm, unsigned long pass);

/* guard.c */
enum kmh_guards { KMH_GUARDS_HOLD, KMH_GUARDS_LATER, KMH_GUARDS_BROKEN };
int kmh_guards_find(struct kmh_vm *vm, struct kmh_action *act);
enum kmh_guards kmh_guards_look(const struct kmh_action *act);

/* deliver.c: in the probe. */
void kmh_finish(struct kmh_vm *vm, struct kmh_action *act);
void kmh_end(struct kmh_vm *vm, struct kmh_action *act, u32 type, u32 reason);

/* hold.c: in process context, under work_mutex. */
long kmh_hold_apply(struct kmh_vm *vm, struct kmh_action *act);
void kmh_hold_release(struct kmh_vm *vm, struct kmh_action *act);

#endif /* KMH_ACTION_H */
