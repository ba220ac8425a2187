// SPDX-License-Identifier: GPL-2.0-only
/*
 * Delivery of actions: what happens in the probe, on the vCPU's CPU, with
 * interrupts off and vm->lock held. Everything here is bounded by the number of
 * pending actions; nothing is freed, which action.c does.
 */
#include "action.h"

/* RFLAGS that REDIRECT may set: CF PF AF ZF SF DF OF. */
#define KMH_RFLAGS 0xcd5ULL

static void kmh_describe(struct kvm_memhook_event *ev, struct kvm_vcpu *vcpu, const struct kmh_state *st)
{
	int i;

	ev->vcpu = vcpu->vcpu_idx;
	ev->dtb = st->dtb;
	ev->rip = st->rip;
	ev->teb = st->teb;
	ev->rflags = st->rflags;
	for (i = 0; i < 16; i++)
		ev->gpr[i] = vcpu->arch.regs[i];
	ev->cpl = st->cpl;
	ev->cs = st->cs;
	ev->code64 = st->code64;
}

static void kmh_report(struct kmh_vm *vm, struct kmh_action *act, struct kvm_memhook_event *ev,
		       u32 type, u32 reason)
{
	ev->type = type;
	ev->cookie = act->a.cookie;
	ev->count = act->count;
	ev->reason = reason;
	kmh_event(vm, ev);
}

/* kmh_finish() - an action is over and waits to be freed; under vm->lock */
void kmh_finish(struct kmh_vm *vm, struct kmh_action *act)
{
	act->ended = true;
	list_move_tail(&act->node, &vm->done);
}

/* kmh_end() - an action ends without having been delivered, or expires; under vm->lock */
void kmh_end(struct kmh_vm *vm, struct kmh_action *act, u32 type, u32 reason)
{
	struct kvm_memhook_event ev = { .vcpu = ~0U };

	kmh_finish(vm, act);
	kmh_report(vm, act, &ev, type, reason);
}

static bool kmh_in_process(const struct kmh_state *st, u64 dtb, u64 user_dtb)
{
	return st->dtb == (dtb & st->dtb_mask) || (user_dtb && st->dtb == (user_dtb & st->dtb_mask));
}

static bool kmh_seen(const struct kmh_action *act, u64 teb)
{
	u32 i;

	for (i = 0; i < act->count; i++)
		if (act->seen[i] == teb)
			return true;
	return act->count == KMH_MAX_THREADS;
}

/* Is this the thread? Nothing of the guest's memory is looked at yet. */
static bool kmh_matches(const struct kmh_action *act, const struct kmh_state *st)
{
	const struct kvm_memhook_action *a = &act->a;

	if (!kmh_in_process(st, a->dtb, a->user_dtb))
		return false;
	if (a->flags & KVM_MEMHOOK_ACTION_RIP_RANGE && (st->rip < a->rip_min || st->rip > a->rip_max))
		return false;
	if (a->flags & KVM_MEMHOOK_ACTION_TEB && st->teb != a->teb)
		return false;
	if (a->flags & KVM_MEMHOOK_ACTION_CODE64 && !st->code64)
		return false;
	if (a->flags & KVM_MEMHOOK_ACTION_CODE32 && st->code64)
		return false;
	if ((a->flags & KVM_MEMHOOK_ACTION_PARKED || a->type == KVM_MEMHOOK_ACTION_RESTORE) &&
	    (st->teb != act->saved->teb || st->rip != act->saved->park))
		return false;
	return !(act->seen && kmh_seen(act, st->teb));
}

/* Does the processor take a new RIP? One outside user space is not entered with. */
static bool kmh_rip_possible(const struct kmh_action *act, const struct kmh_state *st)
{
	u64 end = st->user_end;

	if (!(act->a.set & KVM_MEMHOOK_SET_RIP))
		return true;
	if (act->a.set & KVM_MEMHOOK_SET_CODE64)
		end = st->efer & EFER_LMA ? 1ULL << 47 : 0;
	return act->a.rip < end;
}

/* Keeps the thread's context; the caller then sends it to the park address. */
static void kmh_save(struct kmh_vm *vm, struct kvm_vcpu *vcpu, struct kmh_action *act,
		     const struct kmh_state *st)
{
	struct kmh_saved *s = act->saved;
	int i;

	s->cookie = act->a.cookie;
	s->dtb = act->a.dtb;
	s->user_dtb = act->a.user_dtb;
	s->teb = st->teb;
	s->park = act->a.rip;
	s->regs.mask = 0xffff | KVM_MEMHOOK_SET_RIP | KVM_MEMHOOK_SET_RFLAGS;
	for (i = 0; i < 16; i++)
		s->regs.gpr[i] = vcpu->arch.regs[i];
	s->regs.rip = st->rip;
	s->regs.rflags = st->rflags;
	kmh_fpu_save(s->fpu);
	list_add_tail(&s->node, &vm->saved);
	vm->nr_saved++;
	act->saved = NULL;
}

static void kmh_redirect(struct kmh_vm *vm, struct kvm_vcpu *vcpu, struct kmh_action *act,
			 const struct kmh_state *st)
{
	struct kmh_set set = { .mask = act->a.set, .cs = act->a.cs, .rip = act->a.rip };

	if (act->a.flags & KVM_MEMHOOK_ACTION_SAVE)
		kmh_save(vm, vcpu, act, st);
	memcpy(set.gpr, act->a.gpr, sizeof(set.gpr));
	set.rflags = (st->rflags & ~KMH_RFLAGS) | (act->a.rflags & KMH_RFLAGS);
	if (st->code64)
		set.mask &= ~KVM_MEMHOOK_SET_CODE64; /* as it is */
	kmh_cpu->set(vcpu, &set);
}

/* Gives the context back; false when it cannot be done now. */
static bool kmh_restore(struct kmh_vm *vm, struct kvm_vcpu *vcpu, struct kmh_action *act)
{
	struct kmh_saved *s = act->saved;
	struct kmh_action *other, *next;

	if (!kmh_fpu_restore(s->fpu))
		return false;
	kmh_cpu->set(vcpu, &s->regs);
	/* The context goes with this action; nothing else may refer to it. */
	list_del(&s->node);
	vm->nr_saved--;
	list_for_each_entry_safe(other, next, &vm->pending, node)
		if (other != act && other->saved == s && !(other->a.flags & KVM_MEMHOOK_ACTION_SAVE)) {
			other->saved = NULL;
			kmh_end(vm, other, KVM_MEMHOOK_EVENT_CANCELLED, KVM_MEMHOOK_REASON_STATE);
		}
	return true;
}

/*
 * Delivers an action to the thread that this vCPU is about to run, if it
 * is the one and may be touched
 *
 * True when the vCPU's state has been changed, so that no other action must be
 * delivered at this entry.
 */
static bool kmh_deliver(struct kmh_vm *vm, struct kvm_vcpu *vcpu, struct kmh_action *act, struct kmh_state *st)
{
	const struct kvm_memhook_action *a = &act->a;
	struct kvm_memhook_event ev = {};
	bool changed = true;

	if (!kmh_matches(act, st))
		return false;
	if ((a->flags & KVM_MEMHOOK_ACTION_SAVE || a->type == KVM_MEMHOOK_ACTION_RESTORE) && !kmh_fpu_live())
		return false;
	switch (kmh_guards_look(act)) {
	case KMH_GUARDS_LATER:
		return false;
	case KMH_GUARDS_BROKEN:
		kmh_end(vm, act, KVM_MEMHOOK_EVENT_CANCELLED, KVM_MEMHOOK_REASON_GUARD);
		return false;
	case KMH_GUARDS_HOLD:
		break;
	}
	if (!kmh_rip_possible(act, st)) {
		kmh_end(vm, act, KVM_MEMHOOK_EVENT_CANCELLED, KVM_MEMHOOK_REASON_STATE);
		return false;
	}
	kmh_describe(&ev, vcpu, st);
	switch (a->type) {
	case KVM_MEMHOOK_ACTION_REDIRECT:
		kmh_redirect(vm, vcpu, act, st);
		break;
	case KVM_MEMHOOK_ACTION_PAGE_IN:
		kmh_cpu->page_fault(vcpu, a->address, a->error_code);
		break;
	case KVM_MEMHOOK_ACTION_CAPTURE:
		changed = false;
		break;
	case KVM_MEMHOOK_ACTION_RESTORE:
		if (!kmh_restore(vm, vcpu, act))
			return false;
		break;
	}
	if (act->seen)
		act->seen[act->count] = st->teb;
	else
		kmh_finish(vm, act);
	act->count++;
	kmh_report(vm, act, &ev, KVM_MEMHOOK_EVENT_APPLIED, 0);
	return changed;
}

/* kmh_actions_entry() - in the probe, under vm->lock; st is NULL where the state cannot be had */
void kmh_actions_entry(struct kmh_vm *vm, struct kvm_vcpu *vcpu, struct kmh_state *st)
{
	struct kmh_action *act, *next;

	list_for_each_entry_safe(act, next, &vm->pending, node) {
		if (!st) {
			kmh_end(vm, act, KVM_MEMHOOK_EVENT_CANCELLED, KVM_MEMHOOK_REASON_STATE);
			continue;
		}
		if (act->hold) {
			act->hold->possible |= (st->efer & (EFER_LMA | EFER_NX)) == (EFER_LMA | EFER_NX);
			continue;
		}
		if (!st->calm)
			continue;
		/* A delivery can end others, so the list is not gone on with. */
		if (kmh_deliver(vm, vcpu, act, st))
			break;
	}
}
