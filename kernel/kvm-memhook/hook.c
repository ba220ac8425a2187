// SPDX-License-Identifier: GPL-2.0-only
/*
 * Hooks: what an attachment wants to be told about. All filtering is done here, in
 * the probe, in bounded time.
 */
#include <linux/hash.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "include/kvm_memhook_client.h"
#include "kmh.h"

/* DTBs seen: sets of KMH_WAYS, replaced in turn. */
#define KMH_SETS_BITS 7
#define KMH_WAYS 4

struct kmh_seen {
	u64 dtb[KMH_WAYS];
	u8 next;
};

/* What a vCPU had loaded at its entry before. */
struct kmh_last {
	u64 dtb;
	bool user;	/* USER was reported for it */
};

struct kmh_hooks {
	u32 mask;
	u32 count;
	u32 period_us;
	u64 dtb[KVM_MEMHOOK_MAX_WATCHES];
	struct kmh_seen seen[1 << KMH_SETS_BITS];
	struct kmh_last last[];	/* KVM_MAX_VCPUS */
};

static void kmh_report(struct kmh_vm *vm, struct kvm_vcpu *vcpu, const struct kmh_state *st, u32 type)
{
	struct kvm_memhook_event ev = {
		.type = type, .vcpu = vcpu->vcpu_idx, .dtb = st->dtb, .rip = st->rip, .teb = st->cpl == 3 ? st->teb : 0,
		.rflags = st->rflags, .cpl = st->cpl, .cs = st->cs, .code64 = st->code64,
	};

	kmh_event(vm, &ev);
}

/* Notes a DTB; false if it is there already. */
static bool kmh_seen_add(struct kmh_hooks *h, u64 dtb)
{
	struct kmh_seen *s = &h->seen[hash_64(dtb, KMH_SETS_BITS)];
	unsigned int i;

	for (i = 0; i < KMH_WAYS; i++)
		if (s->dtb[i] == dtb + 1) /* 0 is an empty place, and could be a DTB */
			return false;
	s->dtb[s->next++ % KMH_WAYS] = dtb + 1;
	return true;
}

static bool kmh_watched(const struct kmh_hooks *h, const struct kmh_state *st)
{
	u32 i;

	for (i = 0; i < h->count; i++)
		if ((h->dtb[i] & st->dtb_mask) == st->dtb)
			return true;
	return false;
}

/* kmh_hooks_entry() - in the probe, under vm->lock */
void kmh_hooks_entry(struct kmh_vm *vm, struct kvm_vcpu *vcpu, const struct kmh_state *st)
{
	struct kmh_hooks *h = vm->hooks;
	struct kmh_last *last;
	bool changed;

	if (!h || vcpu->vcpu_idx >= KVM_MAX_VCPUS)
		return;
	if (h->mask & KVM_MEMHOOK_HOOK_NEW_DTB && kmh_seen_add(h, st->dtb))
		kmh_report(vm, vcpu, st, KVM_MEMHOOK_EVENT_NEW_DTB);
	last = &h->last[vcpu->vcpu_idx];
	changed = last->dtb != st->dtb + 1;
	if (!changed && (last->user || st->cpl != 3))
		return;
	last->dtb = st->dtb + 1;
	if (changed)
		last->user = false;
	if (!kmh_watched(h, st))
		return;
	if (changed && h->mask & KVM_MEMHOOK_HOOK_SWITCH)
		kmh_report(vm, vcpu, st, KVM_MEMHOOK_EVENT_SWITCH);
	if (st->cpl == 3 && !last->user) {
		last->user = true;
		if (h->mask & KVM_MEMHOOK_HOOK_USER)
			kmh_report(vm, vcpu, st, KVM_MEMHOOK_EVENT_USER);
	}
}

/* kmh_hooks_period() - how often vCPUs are to be interrupted, 0 for never; under work_mutex */
u32 kmh_hooks_period(struct kmh_vm *vm)
{
	return vm->hooks ? vm->hooks->period_us : 0;
}

/* Puts h in the place of the hooks there are; under work_mutex. */
static void kmh_hooks_replace(struct kmh_vm *vm, struct kmh_hooks *h)
{
	struct kmh_hooks *old;
	unsigned long flags;

	raw_spin_lock_irqsave(&vm->lock, flags);
	old = vm->hooks;
	vm->hooks = h;
	raw_spin_unlock_irqrestore(&vm->lock, flags);
	if (old)
		kmh_probe_put(vm);
	kvfree(old);
}

/* kmh_hooks_drop() - the descriptor goes; under work_mutex */
void kmh_hooks_drop(struct kmh_vm *vm)
{
	kmh_hooks_replace(vm, NULL);
}

static int kmh_hooks_make(const struct kvm_memhook_hooks *arg, const u64 *dtb, struct kmh_hooks **to)
{
	const u32 known = KVM_MEMHOOK_HOOK_NEW_DTB | KVM_MEMHOOK_HOOK_SWITCH | KVM_MEMHOOK_HOOK_USER;
	struct kmh_hooks *h = NULL;

	if (arg->mask & ~known || arg->reserved || arg->count > KVM_MEMHOOK_MAX_WATCHES ||
	    (arg->period_us && (arg->period_us < 500 || arg->period_us > 1000000)) ||
	    (!arg->mask && (arg->count || arg->period_us)))
		return -EINVAL;
	if (arg->mask) {
		h = kvzalloc(struct_size(h, last, KVM_MAX_VCPUS), GFP_KERNEL_ACCOUNT);
		if (!h)
			return -ENOMEM;
		h->mask = arg->mask;
		h->count = arg->count;
		h->period_us = arg->period_us;
		memcpy(h->dtb, dtb, arg->count * sizeof(h->dtb[0]));
	}
	*to = h;
	return 0;
}

/* kmh_hooks_set() - replace the hooks by what arg and its DTBs say; may sleep */
long kmh_hooks_set(struct kmh_vm *vm, const struct kvm_memhook_hooks *arg, const u64 *dtb)
{
	struct kmh_hooks *h;
	long ret;

	ret = kmh_hooks_make(arg, dtb, &h);
	if (ret)
		return ret;
	mutex_lock(&vm->work_mutex);
	if (h)
		ret = kmh_probe_get(vm);
	if (ret) {
		kvfree(h);
	} else {
		kmh_hooks_replace(vm, h);
		if (arg->period_us)
			ret = kmh_work_start(vm);
	}
	mutex_unlock(&vm->work_mutex);
	return ret;
}

/* kmh_hooks_ioctl() - SET_HOOKS */
long kmh_hooks_ioctl(struct kmh_vm *vm, const struct kvm_memhook_hooks __user *uarg)
{
	u64 dtb[KVM_MEMHOOK_MAX_WATCHES];
	struct kvm_memhook_hooks arg;

	if (copy_from_user(&arg, uarg, sizeof(arg)))
		return -EFAULT;
	if (arg.count > KVM_MEMHOOK_MAX_WATCHES)
		return -EINVAL;
	if (copy_from_user(dtb, u64_to_user_ptr(arg.dtb), arg.count * sizeof(dtb[0])))
		return -EFAULT;
	return kmh_hooks_set(vm, &arg, dtb);
}

struct kmh_vm *kvm_memhook_register(int vm_fd, const struct kvm_memhook_client *client)
{
	const struct kvm_memhook_hooks arg = {
		.mask = client->mask, .count = client->count, .period_us = client->period_us,
	};
	struct kmh_vm *vm;
	long err;

	if (!client->event)
		return ERR_PTR(-EINVAL);
	vm = kmh_vm_create(vm_fd, client);
	if (IS_ERR(vm))
		return vm;
	err = kmh_hooks_set(vm, &arg, client->dtb);
	if (err) {
		kmh_vm_release(vm);
		return ERR_PTR(err);
	}
	return vm;
}
EXPORT_SYMBOL_GPL(kvm_memhook_register);

void kvm_memhook_unregister(struct kmh_vm *vm)
{
	kmh_vm_release(vm);
}
EXPORT_SYMBOL_GPL(kvm_memhook_unregister);
