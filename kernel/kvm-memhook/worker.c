// SPDX-License-Identifier: GPL-2.0-only
/*
 * The worker of an attachment. While any action is pending it runs about once a
 * millisecond: it interrupts the vCPUs that execute, so that they enter again and
 * the probe can deliver, ends what has passed its deadline, has the pages of guards
 * found again that have moved, and applies holds. It outlives the descriptor while
 * threads of the guest are to get their contexts back.
 */
#include <linux/delay.h>
#include <linux/slab.h>

#include "action.h"

/* How long the threads of a closed descriptor are waited for while the guest runs, in passes. */
#define KMH_CLOSE_PASSES 60000
/* How long the worker stays when there is nothing to do: the next step of a client often follows. */
#define KMH_LINGER_PASSES 100
/* Held tables are looked at again so often: the guest may have added an entry. */
#define KMH_HOLD_PASSES 16

/*
 * Is a hold's process still the one that was meant? Its table is looked at in every
 * pass, as a process can be ended from outside while it is held, and its table's
 * page be something else soon after. Returns false where nothing is to be done.
 */
static bool kmh_hold_guarded(struct kmh_vm *vm, struct kmh_action *act)
{
	enum kmh_guards look;
	unsigned long flags;

	if (kmh_guards_find(vm, act)) {
		kmh_stop(vm, act, KVM_MEMHOOK_EVENT_CANCELLED, KVM_MEMHOOK_REASON_MOVED);
		return false;
	}
	raw_spin_lock_irqsave(&vm->lock, flags);
	look = kmh_guards_look(act);
	raw_spin_unlock_irqrestore(&vm->lock, flags);
	if (look == KMH_GUARDS_BROKEN)
		kmh_stop(vm, act, KVM_MEMHOOK_EVENT_CANCELLED, KVM_MEMHOOK_REASON_GUARD);
	return look == KMH_GUARDS_HOLD;
}

static void kmh_hold_pass(struct kmh_vm *vm, struct kmh_action *act)
{
	struct kvm_memhook_event ev = {
		.type = KVM_MEMHOOK_EVENT_APPLIED, .vcpu = ~0U, .cookie = act->a.cookie, .dtb = act->a.dtb,
	};
	struct kmh_hold *h = act->hold;
	unsigned long flags;
	long changed;

	if (!READ_ONCE(h->possible) || !kmh_hold_guarded(vm, act) || h->passes++ % KMH_HOLD_PASSES)
		return;
	changed = kmh_hold_apply(vm, act);
	if (changed < 0) {
		kmh_stop(vm, act, KVM_MEMHOOK_EVENT_CANCELLED, KVM_MEMHOOK_REASON_MOVED);
		return;
	}
	if (changed)
		kmh_kick(vm, true);
	if (h->applied)
		return;
	h->applied = true;
	raw_spin_lock_irqsave(&vm->lock, flags);
	kmh_event(vm, &ev);
	raw_spin_unlock_irqrestore(&vm->lock, flags);
}

/* Drops what is pending, without a word: the VM has gone, or nobody listens any more. */
static void kmh_drop_all(struct kmh_vm *vm)
{
	struct kmh_action *act, *next;
	unsigned long flags;

	raw_spin_lock_irqsave(&vm->lock, flags);
	list_for_each_entry_safe(act, next, &vm->pending, node)
		kmh_finish(vm, act);
	raw_spin_unlock_irqrestore(&vm->lock, flags);
	kmh_reap(vm);
}

/* Did a vCPU enter the guest since it was asked last? */
static bool kmh_entered(struct kmh_vm *vm)
{
	unsigned long flags;
	bool entered;

	raw_spin_lock_irqsave(&vm->lock, flags);
	entered = vm->entered;
	vm->entered = false;
	raw_spin_unlock_irqrestore(&vm->lock, flags);
	return entered;
}

/*
 * Looks after everything once. Returns how long to wait for the next time, in us,
 * 0 when there is nothing left to do. Under work_mutex.
 */
static unsigned int kmh_pass(struct kmh_vm *vm)
{
	unsigned long pass = ++vm->pass;
	ktime_t now = ktime_get();
	struct kmh_action *act;

	kmh_reap(vm);
	if (kmh_vm_gone(vm) || (vm->closing && kmh_entered(vm) && !--vm->close_passes)) {
		kmh_drop_all(vm);
		return 0;
	}
	while ((act = kmh_next(vm, pass))) {
		if (!vm->closing && ktime_after(now, act->deadline))
			kmh_stop(vm, act, KVM_MEMHOOK_EVENT_EXPIRED, 0);
		else if (act->hold)
			kmh_hold_pass(vm, act);
		else if (kmh_guards_find(vm, act))
			kmh_stop(vm, act, KVM_MEMHOOK_EVENT_CANCELLED, KVM_MEMHOOK_REASON_MOVED);
	}
	if (!list_empty(&vm->pending)) {
		vm->linger = vm->released ? 0 : KMH_LINGER_PASSES;
		kmh_kick(vm, false);
		return 1000;
	}
	if (kmh_hooks_period(vm)) {
		kmh_kick(vm, false);
		/* An action must not wait for long, nor the end. */
		return min(kmh_hooks_period(vm), 20000U);
	}
	if (vm->released || !vm->linger)
		return 0;
	vm->linger--;
	return 1000;
}

static void kmh_work(struct work_struct *work)
{
	struct kmh_vm *vm = container_of(work, struct kmh_vm, work);
	bool closing = false;
	unsigned int us;

	do {
		mutex_lock(&vm->work_mutex);
		us = kmh_pass(vm);
		if (!us) {
			vm->working = false;
			closing = vm->closing;
		}
		mutex_unlock(&vm->work_mutex);
		if (us)
			usleep_range(us * 9 / 10, us * 11 / 10);
	} while (us);
	kmh_probe_put(vm);
	if (closing)
		kmh_vm_free(vm);
}

/* A parked thread's way back, when nobody is left to ask for it. */
static void kmh_give_back(struct kmh_vm *vm, struct kmh_saved *s)
{
	struct kmh_action *act = kzalloc(sizeof(*act), GFP_KERNEL | __GFP_NOFAIL);
	unsigned long flags;

	act->a.type = KVM_MEMHOOK_ACTION_RESTORE;
	act->a.dtb = s->dtb;
	act->a.user_dtb = s->user_dtb;
	act->saved = s;
	vm->nr_actions++;
	raw_spin_lock_irqsave(&vm->lock, flags);
	list_add_tail(&act->node, &vm->pending);
	raw_spin_unlock_irqrestore(&vm->lock, flags);
}

/*
 * kmh_actions_close() - the descriptor has gone
 *
 * Cancels everything and releases what is held. True when threads are parked that
 * must get their contexts back: then the worker frees the attachment when they
 * have, when the VM ends, or when a minute of the guest's running has passed in
 * which they did not come.
 */
bool kmh_actions_close(struct kmh_vm *vm)
{
	struct kmh_action *act;
	struct kmh_saved *s;
	unsigned long pass;

	mutex_lock(&vm->work_mutex);
	vm->released = true;
	kmh_hooks_drop(vm);
	pass = ++vm->pass;
	while ((act = kmh_next(vm, pass)))
		kmh_stop(vm, act, KVM_MEMHOOK_EVENT_CANCELLED, KVM_MEMHOOK_REASON_ASKED);
	kmh_reap(vm);
	/* With nothing pending no probe adds or removes one. */
	if (!list_empty(&vm->saved) && !kmh_vm_gone(vm)) {
		vm->closing = true;
		vm->close_passes = KMH_CLOSE_PASSES;
		list_for_each_entry(s, &vm->saved, node)
			kmh_give_back(vm, s);
		if (kmh_work_start(vm))
			vm->closing = false; /* the probe was there for the parking, so this is not seen */
	}
	mutex_unlock(&vm->work_mutex);
	if (vm->closing)
		return true;
	flush_work(&vm->work);
	return false;
}

void kmh_worker_init(struct kmh_vm *vm)
{
	INIT_WORK(&vm->work, kmh_work);
}

/* kmh_work_start() - have the worker run until nothing is pending; under work_mutex */
int kmh_work_start(struct kmh_vm *vm)
{
	int err;

	if (vm->working)
		return 0;
	err = kmh_probe_get(vm);
	if (err)
		return err;
	vm->working = true;
	queue_work(kmh_wq, &vm->work);
	return 0;
}
