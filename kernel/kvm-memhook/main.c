// SPDX-License-Identifier: GPL-2.0-only
/*
 * The device and the descriptor of a VM: dispatch only. Access is what the
 * device node's owner and group allow, plus what it takes to have a VM's
 * descriptor at all (pidfd_getfd(2): ptrace access to the VMM).
 */
#define pr_fmt(fmt) "kvm-memhook: " fmt

#include <linux/compat.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/uaccess.h>

#include "kmh.h"

static long kmh_dev_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct kvm_memhook_attach attach;

	switch (cmd) {
	case KVM_MEMHOOK_GET_API:
		return KVM_MEMHOOK_API;
	case KVM_MEMHOOK_ATTACH:
		if (copy_from_user(&attach, (void __user *)arg, sizeof(attach)))
			return -EFAULT;
		return kmh_vm_attach(&attach);
	default:
		return -ENOTTY;
	}
}

static long kmh_vm_info(struct kmh_vm *vm, struct kvm_memhook_info __user *uarg)
{
	struct kvm_memhook_info info = {
		.api = KVM_MEMHOOK_API,
		.vendor = kmh_cpu->vendor,
		.state = kmh_vm_gone(vm) ? KVM_MEMHOOK_STATE_GONE : 0,
		.vcpus = atomic_read(&vm->kvm->online_vcpus),
		.slots_generation = kmh_slots_generation(vm),
		.events_lost = READ_ONCE(vm->events_lost),
	};

	return copy_to_user(uarg, &info, sizeof(info)) ? -EFAULT : 0;
}

static long kmh_vm_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct kmh_vm *vm = file->private_data;
	void __user *uarg = (void __user *)arg;

	if (cmd == KVM_MEMHOOK_GET_INFO)
		return kmh_vm_info(vm, uarg);
	if (kmh_vm_gone(vm))
		return -ESRCH;

	switch (cmd) {
	case KVM_MEMHOOK_GET_SLOTS:
		return kmh_memory_slots(vm, uarg);
	case KVM_MEMHOOK_READ:
		return kmh_memory_rw(vm, uarg, false);
	case KVM_MEMHOOK_WRITE:
		return kmh_memory_rw(vm, uarg, true);
	case KVM_MEMHOOK_SYNC:
		kmh_map_sync(vm);
		return 0;
	case KVM_MEMHOOK_GET_REGS:
		return kmh_vcpu_regs(vm, uarg);
	case KVM_MEMHOOK_SET_HOOKS:
		return kmh_hooks_ioctl(vm, uarg);
	case KVM_MEMHOOK_ADD_ACTION:
		return kmh_action_add(vm, uarg);
	case KVM_MEMHOOK_CANCEL:
		return kmh_action_cancel(vm, uarg);
	default:
		return -ENOTTY;
	}
}

static int kmh_vm_release_file(struct inode *inode, struct file *file)
{
	kmh_vm_release(file->private_data);
	return 0;
}

const struct file_operations kmh_vm_fops = {
	.owner = THIS_MODULE,
	.release = kmh_vm_release_file,
	.unlocked_ioctl = kmh_vm_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.mmap = kmh_mmap,
	.read = kmh_event_read,
	.poll = kmh_event_poll,
	.llseek = noop_llseek,
};

static const struct file_operations kmh_dev_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = kmh_dev_ioctl,
	.compat_ioctl = compat_ptr_ioctl,
	.llseek = noop_llseek,
};

static struct miscdevice kmh_dev = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "kvm-memhook",
	.fops = &kmh_dev_fops,
	.mode = 0660,
};

struct workqueue_struct *kmh_wq;

static int __init kmh_init(void)
{
	struct module *kvm;
	int err;

	if (kmh_cpu_init()) {
		pr_err("this CPU has neither SVM nor VMX; a paravirtual KVM is not supported\n");
		return -ENODEV;
	}
	if (!kmh_kvm_module(&kvm)) {
		pr_err("no kvm module is loaded; load kvm_amd or kvm_intel first (a KVM that is built in, or another's, is not supported)\n");
		return -ENODEV;
	}
	module_put(kvm);
	err = kmh_fpu_init();
	if (err) {
		pr_err("this CPU's XSAVE area is laid out in an unknown way\n");
		return err;
	}
	kmh_wq = alloc_workqueue("kvm-memhook", WQ_UNBOUND, 0);
	if (!kmh_wq)
		return -ENOMEM;
	err = misc_register(&kmh_dev);
	if (err)
		destroy_workqueue(kmh_wq);
	return err;
}

static void __exit kmh_exit(void)
{
	misc_deregister(&kmh_dev);
	/* A worker that has given up the last attachment may still be on its way out. */
	destroy_workqueue(kmh_wq);
}

module_init(kmh_init);
module_exit(kmh_exit);

MODULE_DESCRIPTION("Guest memory, hooks and process actions for stock KVM");
MODULE_AUTHOR("The vmav authors");
MODULE_LICENSE("GPL");
MODULE_VERSION("1.0");
