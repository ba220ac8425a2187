/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Hooks for other kernel modules: what KVM_MEMHOOK_SET_HOOKS offers user space,
 * with a function in the place of the ring.
 */
#ifndef KVM_MEMHOOK_CLIENT_H
#define KVM_MEMHOOK_CLIENT_H

#include <linux/types.h>

struct kvm_memhook_event;
struct kmh_vm;

/* What to be told of one VM. The caller owns it and keeps it until unregistered. */
struct kvm_memhook_client {
	/*
	 * Called for each event, KVM_MEMHOOK_EVENT_NEW_DTB, _SWITCH, _USER and at
	 * last _GONE. May be called on several CPUs at once, with interrupts off
	 * and a raw spinlock held: it must not sleep, wake, allocate or take long.
	 */
	void (*event)(const struct kvm_memhook_client *client, const struct kvm_memhook_event *event);
	u32 mask;	/* KVM_MEMHOOK_HOOK_*; 0 for GONE alone */
	u32 count;	/* entries of dtb */
	const u64 *dtb;	/* for SWITCH and USER; copied */
	u32 period_us;	/* as in struct kvm_memhook_hooks */
};

/*
 * kvm_memhook_register() - hook the VM that vm_fd names in the calling process
 *
 * Returns a handle, or an ERR_PTR as KVM_MEMHOOK_ATTACH and KVM_MEMHOOK_SET_HOOKS
 * fail. The handle holds the VM until unregistered. May sleep.
 */
struct kmh_vm *kvm_memhook_register(int vm_fd, const struct kvm_memhook_client *client);

/* When it returns, event() does not run and will not be called again. May sleep. */
void kvm_memhook_unregister(struct kmh_vm *vm);

#endif /* KVM_MEMHOOK_CLIENT_H */
