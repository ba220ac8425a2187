// SPDX-License-Identifier: GPL-2.0-only
/*
 * Actions in process context: what user space asks for, checked, added, cancelled
 * and freed.
 *
 * Lists change under vm->lock. Only process context under work_mutex frees, so a
 * pointer found there stays good until the mutex is given back.
 */
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "action.h"

void kmh_actions_init(struct kmh_vm *vm)
{
	raw_spin_lock_init(&vm->lock);
	mutex_init(&vm->work_mutex);
	INIT_LIST_HEAD(&vm->pending);
	INIT_LIST_HEAD(&vm->done);
	INIT_LIST_HEAD(&vm->saved);
	kmh_worker_init(vm);
}

static void kmh_saved_free(struct kmh_saved *s)
{
	if (s)
		free_page((unsigned long)s->fpu);
	kfree(s);
}

/* Whose context is act->saved: its own once it is to be freed? */
static bool kmh_owns_saved(const struct kmh_action *act)
{
	return act->a.flags & KVM_MEMHOOK_ACTION_SAVE ||
	       (act->a.type == KVM_MEMHOOK_ACTION_RESTORE && act->count);
}

static void kmh_action_free(struct kmh_action *act)
{
	unsigned int i;

	for (i = 0; i < KVM_MEMHOOK_MAX_GUARDS; i++)
		if (act->guard[i].page)
			put_page(act->guard[i].page);
	if (kmh_owns_saved(act))
		kmh_saved_free(act->saved);
	kfree(act->seen);
	kfree(act->hold);
	kfree(act);
}

/* kmh_reap() - free what has ended; under work_mutex */
void kmh_reap(struct kmh_vm *vm)
{
	struct kmh_action *act, *next;
	unsigned long flags;
	LIST_HEAD(done);

	raw_spin_lock_irqsave(&vm->lock, flags);
	list_splice_init(&vm->done, &done);
	raw_spin_unlock_irqrestore(&vm->lock, flags);
	list_for_each_entry_safe(act, next, &done, node) {
		vm->nr_actions--;
		kmh_action_free(act);
	}
}

/* Has user space asked for something that makes sense? */
static int kmh_check(const struct kvm_memhook_action *a)
{
	const u32 registers = 0xffff | KVM_MEMHOOK_SET_RIP | KVM_MEMHOOK_SET_RFLAGS | KVM_MEMHOOK_SET_CODE64;
	const u32 filters = KVM_MEMHOOK_ACTION_RIP_RANGE | KVM_MEMHOOK_ACTION_TEB |
			    KVM_MEMHOOK_ACTION_CODE64 | KVM_MEMHOOK_ACTION_CODE32;
	u32 flags = 0, i;

	switch (a->type) {
	case KVM_MEMHOOK_ACTION_REDIRECT:
		flags = filters | KVM_MEMHOOK_ACTION_ALL_THREADS | KVM_MEMHOOK_ACTION_SAVE | KVM_MEMHOOK_ACTION_PARKED;
		if (!a->set || a->set & ~registers)
			return -EINVAL;
		break;
	case KVM_MEMHOOK_ACTION_CAPTURE:
		flags = filters | KVM_MEMHOOK_ACTION_ALL_THREADS | KVM_MEMHOOK_ACTION_PARKED;
		break;
	case KVM_MEMHOOK_ACTION_PAGE_IN:
		flags = filters;
		/* User access, at most a write or a fetch: what user code could do itself. */
		if ((a->error_code & ~0x12U) != 4 || (a->error_code & 0x12) == 0x12 || a->address >> 56)
			return -EINVAL;
		break;
	case KVM_MEMHOOK_ACTION_RESTORE:
	case KVM_MEMHOOK_ACTION_HOLD:
		break;
	default:
		return -EINVAL;
	}
	if (a->flags & ~flags || a->reserved || !a->timeout_ms || a->timeout_ms > 600000 ||
	    a->guards > KVM_MEMHOOK_MAX_GUARDS ||
	    (a->type != KVM_MEMHOOK_ACTION_REDIRECT && a->set) || a->rip >> 56)
		return -EINVAL;
	if ((a->flags & KVM_MEMHOOK_ACTION_CODE64 && a->flags & KVM_MEMHOOK_ACTION_CODE32) ||
	    (a->flags & KVM_MEMHOOK_ACTION_SAVE &&
	     (a->set != KVM_MEMHOOK_SET_RIP || a->flags & (KVM_MEMHOOK_ACTION_ALL_THREADS | KVM_MEMHOOK_ACTION_PARKED))) ||
	    (a->flags & KVM_MEMHOOK_ACTION_PARKED && a->flags & KVM_MEMHOOK_ACTION_ALL_THREADS))
		return -EINVAL;
	if (a->set & KVM_MEMHOOK_SET_CODE64 ? (a->cs & ~0xfffcU) != 3 || !(a->set & KVM_MEMHOOK_SET_RIP) : a->cs)
		return -EINVAL;
	for (i = 0; i < KVM_MEMHOOK_MAX_GUARDS; i++) {
		const struct kvm_memhook_guard *g = &a->guard[i];

		if (i >= a->guards ? g->gpa || g->mask || g->value :
				     g->gpa & 7 || g->gpa >> 52 || !g->mask || g->value & ~g->mask)
			return -EINVAL;
	}
	return 0;
}

static struct kmh_saved *kmh_saved_of(struct kmh_vm *vm, u64 cookie)
{
	struct kmh_saved *s, *found = NULL;
	unsigned long flags;

	raw_spin_lock_irqsave(&vm->lock, flags);
	list_for_each_entry(s, &vm->saved, node)
		if (s->cookie == cookie)
			found = s;
	raw_spin_unlock_irqrestore(&vm->lock, flags);
	return found;
}

/* Is the cookie in use, or a context about to be given back already? Under work_mutex. */
static int kmh_conflicts(struct kmh_vm *vm, const struct kvm_memhook_action *a)
{
	struct kmh_action *act;
	unsigned long flags;
	u32 saves = 0;
	int err = 0;

	if (kmh_saved_of(vm, a->cookie))
		return -EEXIST;
	raw_spin_lock_irqsave(&vm->lock, flags);
	list_for_each_entry(act, &vm->pending, node) {
		if (act->a.cookie == a->cookie)
			err = -EEXIST;
		if (a->type == KVM_MEMHOOK_ACTION_RESTORE && act->a.type == KVM_MEMHOOK_ACTION_RESTORE &&
		    act->a.saved == a->saved)
			err = -EBUSY;
		saves += !!(act->a.flags & KVM_MEMHOOK_ACTION_SAVE);
	}
	if (a->flags & KVM_MEMHOOK_ACTION_SAVE && vm->nr_saved + saves >= KVM_MEMHOOK_MAX_SAVED)
		err = -EDQUOT;
	raw_spin_unlock_irqrestore(&vm->lock, flags);
	return err;
}

static struct kmh_action *kmh_action_make(struct kmh_vm *vm, const struct kvm_memhook_action *a)
{
	struct kmh_action *act = kzalloc(sizeof(*act), GFP_KERNEL_ACCOUNT);
	u32 i;

	if (!act)
		return ERR_PTR(-ENOMEM);
	act->a = *a;
	act->deadline = ktime_add_ms(ktime_get(), a->timeout_ms);
	for (i = 0; i < a->guards; i++) {
		act->guard[i].gfn = a->guard[i].gpa >> PAGE_SHIFT;
		act->guard[i].offset = offset_in_page(a->guard[i].gpa);
		act->guard[i].mask = a->guard[i].mask;
		act->guard[i].value = a->guard[i].value;
		act->guard[i].stale = true;
	}
	if (a->flags & KVM_MEMHOOK_ACTION_ALL_THREADS) {
		act->seen = kcalloc(KMH_MAX_THREADS, sizeof(*act->seen), GFP_KERNEL_ACCOUNT);
		if (!act->seen)
			goto no_memory;
	}
	if (a->type == KVM_MEMHOOK_ACTION_HOLD) {
		act->hold = kzalloc(sizeof(*act->hold), GFP_KERNEL_ACCOUNT);
		if (!act->hold)
			goto no_memory;
	}
	if (a->flags & KVM_MEMHOOK_ACTION_SAVE) {
		act->saved = kzalloc(sizeof(*act->saved), GFP_KERNEL_ACCOUNT);
		if (!act->saved)
			goto no_memory;
		act->saved->fpu = (void *)get_zeroed_page(GFP_KERNEL_ACCOUNT);
		if (!act->saved->fpu)
			goto no_memory;
	}
	if (a->flags & KVM_MEMHOOK_ACTION_PARKED || a->type == KVM_MEMHOOK_ACTION_RESTORE) {
		act->saved = kmh_saved_of(vm, a->saved);
		if (!act->saved) {
			kmh_action_free(act);
			return ERR_PTR(-ENOENT);
		}
		act->a.dtb = act->saved->dtb;
		act->a.user_dtb = act->saved->user_dtb;
	}
	return act;

no_memory:
	kmh_action_free(act);
	return ERR_PTR(-ENOMEM);
}

/* kmh_action_add() - ADD_ACTION */
long kmh_action_add(struct kmh_vm *vm, struct kvm_memhook_action __user *uarg)
{
	struct kvm_memhook_action a;
	struct kmh_action *act;
	unsigned long flags;
	int err;

	if (copy_from_user(&a, uarg, sizeof(a)))
		return -EFAULT;
	err = kmh_check(&a);
	if (err)
		return err;
	mutex_lock(&vm->work_mutex);
	kmh_reap(vm);
	err = -EDQUOT;
	if (vm->nr_actions >= KVM_MEMHOOK_MAX_ACTIONS)
		goto out;
	err = kmh_conflicts(vm, &a);
	if (err)
		goto out;
	act = kmh_action_make(vm, &a);
	err = PTR_ERR_OR_ZERO(act);
	if (err)
		goto out;
	err = kmh_work_start(vm);
	if (err) {
		kmh_action_free(act);
		goto out;
	}
	/* On the list first: from here on a change of what backs it is noticed. */
	vm->nr_actions++;
	raw_spin_lock_irqsave(&vm->lock, flags);
	list_add_tail(&act->node, &vm->pending);
	raw_spin_unlock_irqrestore(&vm->lock, flags);
	err = kmh_guards_find(vm, act);
	if (err) {
		/* Not delivered: a guard without its page holds it back. */
		raw_spin_lock_irqsave(&vm->lock, flags);
		list_del(&act->node);
		raw_spin_unlock_irqrestore(&vm->lock, flags);
		vm->nr_actions--;
		kmh_action_free(act);
	}
out:
	mutex_unlock(&vm->work_mutex);
	return err;
}

/* kmh_stop() - end an action in process context, unless the probe was faster; under work_mutex */
bool kmh_stop(struct kmh_vm *vm, struct kmh_action *act, u32 type, u32 reason)
{
	unsigned long flags;
	bool stopped;

	/* Released before it is said to be. */
	if (act->hold && act->hold->applied)
		kmh_hold_release(vm, act);
	raw_spin_lock_irqsave(&vm->lock, flags);
	stopped = !act->ended;
	if (stopped)
		kmh_end(vm, act, type, reason);
	raw_spin_unlock_irqrestore(&vm->lock, flags);
	return stopped;
}

/* kmh_next() - some pending action that was not looked after in this pass; under work_mutex */
struct kmh_action *kmh_next(struct kmh_vm *vm, unsigned long pass)
{
	struct kmh_action *act, *found = NULL;
	unsigned long flags;

	raw_spin_lock_irqsave(&vm->lock, flags);
	list_for_each_entry(act, &vm->pending, node)
		if (act->pass != pass) {
			act->pass = pass;
			found = act;
			break;
		}
	raw_spin_unlock_irqrestore(&vm->lock, flags);
	return found;
}

/* kmh_action_cancel() - CANCEL */
long kmh_action_cancel(struct kmh_vm *vm, struct kvm_memhook_cancel __user *uarg)
{
	struct kvm_memhook_cancel c;
	struct kmh_action *act;
	unsigned long pass;

	if (copy_from_user(&c, uarg, sizeof(c)))
		return -EFAULT;
	if (c.flags & ~KVM_MEMHOOK_CANCEL_ALL || c.cancelled)
		return -EINVAL;
	mutex_lock(&vm->work_mutex);
	pass = ++vm->pass;
	while ((act = kmh_next(vm, pass)))
		if (c.flags & KVM_MEMHOOK_CANCEL_ALL || act->a.cookie == c.cookie)
			c.cancelled += kmh_stop(vm, act, KVM_MEMHOOK_EVENT_CANCELLED,
						KVM_MEMHOOK_REASON_ASKED);
	kmh_reap(vm);
	mutex_unlock(&vm->work_mutex);
	return put_user(c.cancelled, &uarg->cancelled);
}

/* kmh_actions_destroy() - frees what is left; no worker, no probe */
void kmh_actions_destroy(struct kmh_vm *vm)
{
	struct kmh_action *act, *next;
	struct kmh_saved *s, *after;

	list_splice_init(&vm->pending, &vm->done);
	list_for_each_entry_safe(act, next, &vm->done, node)
		kmh_action_free(act);
	list_for_each_entry_safe(s, after, &vm->saved, node)
		kmh_saved_free(s);
}
