// SPDX-License-Identifier: GPL-2.0-only
/*
 * A module that uses kvm-memhook's hooks from within the kernel: it counts the
 * address spaces that come up in one VM, and notes its end. The VM is a
 * descriptor of the process that loads the module (vm_fd=N); the counts are in
 * /sys/module/kmh_sample/parameters.
 */
#include <linux/err.h>
#include <linux/module.h>
#include <linux/spinlock.h>

#include "../include/kvm_memhook_client.h"
#include "../uapi/kvm_memhook.h"

static int vm_fd = -1;
module_param(vm_fd, int, 0444);
MODULE_PARM_DESC(vm_fd, "descriptor of a KVM VM in the process that loads the module");

static unsigned int address_spaces;
module_param(address_spaces, uint, 0444);
MODULE_PARM_DESC(address_spaces, "address spaces seen");

static bool gone;
module_param(gone, bool, 0444);
MODULE_PARM_DESC(gone, "the VM has ended");

static struct kmh_vm *vm;
static DEFINE_RAW_SPINLOCK(sample_lock);

static void sample_event(const struct kvm_memhook_client *client, const struct kvm_memhook_event *event)
{
	unsigned long flags;

	raw_spin_lock_irqsave(&sample_lock, flags);
	if (event->type == KVM_MEMHOOK_EVENT_NEW_DTB)
		address_spaces++;
	else if (event->type == KVM_MEMHOOK_EVENT_GONE)
		gone = true;
	raw_spin_unlock_irqrestore(&sample_lock, flags);
}

static const struct kvm_memhook_client sample = {
	.event = sample_event,
	.mask = KVM_MEMHOOK_HOOK_NEW_DTB,
};

static int __init sample_init(void)
{
	vm = kvm_memhook_register(vm_fd, &sample);
	return PTR_ERR_OR_ZERO(vm);
}

static void __exit sample_exit(void)
{
	kvm_memhook_unregister(vm);
}

module_init(sample_init);
module_exit(sample_exit);

MODULE_DESCRIPTION("Counts a VM's address spaces through kvm-memhook");
MODULE_AUTHOR("The vmav authors");
MODULE_LICENSE("GPL");
