// SPDX-License-Identifier: GPL-2.0-only
/*
 * Attachment: from a descriptor that user space claims to be a VM to a struct
 * kvm that is one, and back to nothing when the last reference goes.
 */
#include <linux/anon_inodes.h>
#include <linux/file.h>
#include <linux/magic.h>
#include <linux/module.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/tracepoint.h>

#include "kmh.h"

/*
 * The loaded kvm module, found as the owner of the tracepoint we live on. Its
 * address range is what tells KVM's own file operations from somebody else's.
 */
static struct module *kmh_found_kvm;

static int kmh_look_for_kvm(struct notifier_block *nb, unsigned long action, void *data)
{
	struct tp_module *tp = data;

	/* The list is locked here, so the module cannot go in between. */
	if (action == MODULE_STATE_COMING && !kmh_found_kvm &&
	    !strcmp(tp->mod->name, "kvm") && try_module_get(tp->mod))
		kmh_found_kvm = tp->mod;
	return NOTIFY_OK;
}

/*
 * kmh_kvm_module() - take a reference on the loaded kvm module
 *
 * Registering the notifier reports the modules that are loaded already, which
 * is the only way left to find one by name. False when there is none.
 */
bool kmh_kvm_module(struct module **mod)
{
	static DEFINE_MUTEX(lock);
	struct notifier_block nb = { .notifier_call = kmh_look_for_kvm };

	mutex_lock(&lock);
	kmh_found_kvm = NULL;
	if (!register_tracepoint_module_notifier(&nb))
		unregister_tracepoint_module_notifier(&nb);
	*mod = kmh_found_kvm;
	mutex_unlock(&lock);
	return *mod;
}

/* Is this file a VM of the stock kvm module? */
static int kmh_check_file(struct file *file)
{
	struct module *kvm;
	bool own;

	if (file_inode(file)->i_sb->s_magic != ANON_INODE_FS_MAGIC ||
	    strcmp(file->f_path.dentry->d_name.name, "kvm-vm"))
		return -EINVAL;
	if (!kmh_kvm_module(&kvm))
		return -EOPNOTSUPP;
	own = within_module((unsigned long)file->f_op->unlocked_ioctl, kvm);
	module_put(kvm);
	if (!own || !file->private_data)
		return -EOPNOTSUPP;
	return 0;
}

bool kmh_vm_gone(struct kmh_vm *vm)
{
	return smp_load_acquire(&vm->gone);
}

static void kmh_mn_release(struct mmu_notifier *mn, struct mm_struct *mm)
{
	struct kmh_vm *vm = container_of(mn, struct kmh_vm, mn);

	smp_store_release(&vm->gone, true);
	kmh_map_zap_all(vm);
	kmh_event_gone(vm);
	wake_up_all(&vm->wait);
}

static int kmh_mn_start(struct mmu_notifier *mn, const struct mmu_notifier_range *range)
{
	return kmh_map_invalidate_start(container_of(mn, struct kmh_vm, mn), range);
}

static void kmh_mn_end(struct mmu_notifier *mn, const struct mmu_notifier_range *range)
{
	kmh_map_invalidate_end(container_of(mn, struct kmh_vm, mn));
}

static const struct mmu_notifier_ops kmh_mn_ops = {
	.release = kmh_mn_release,
	.invalidate_range_start = kmh_mn_start,
	.invalidate_range_end = kmh_mn_end,
};

/*
 * kmh_vm_create() - an attachment to the VM that vm_fd names
 *
 * Its events go to the client or, with NULL, to its ring. kmh_vm_release() undoes it.
 */
struct kmh_vm *kmh_vm_create(int vm_fd, const struct kvm_memhook_client *client)
{
	struct kmh_vm *vm;
	int err;

	vm = kzalloc(sizeof(*vm), GFP_KERNEL_ACCOUNT);
	if (!vm)
		return ERR_PTR(-ENOMEM);
	vm->client = client;
	init_waitqueue_head(&vm->wait);
	kmh_actions_init(vm);
	vm->vm_file = fget(vm_fd);
	err = -EBADF;
	if (!vm->vm_file)
		goto free;
	err = kmh_check_file(vm->vm_file);
	if (err)
		goto put_file;
	vm->kvm = vm->vm_file->private_data;
	vm->mm = vm->kvm->mm;
	mmgrab(vm->mm);
	err = kmh_map_init(vm);
	if (err)
		goto drop_mm;
	err = kmh_ring_init(vm);
	if (err)
		goto map_destroy;

	/* Registration needs the address space alive; a dying VMM is no VM. */
	err = -ESRCH;
	if (!mmget_not_zero(vm->mm))
		goto ring_destroy;
	vm->mn.ops = &kmh_mn_ops;
	err = mmu_notifier_register(&vm->mn, vm->mm);
	mmput(vm->mm);
	if (err)
		goto ring_destroy;
	return vm;

ring_destroy:
	kmh_ring_destroy(vm);
map_destroy:
	kmh_map_destroy(vm);
drop_mm:
	mmdrop(vm->mm);
put_file:
	fput(vm->vm_file);
free:
	kfree(vm);
	return ERR_PTR(err);
}

/* kmh_vm_free() - give everything back; nothing refers to the attachment any more */
void kmh_vm_free(struct kmh_vm *vm)
{
	mmu_notifier_unregister(&vm->mn, vm->mm);
	kmh_actions_destroy(vm);
	kmh_ring_destroy(vm);
	kmh_map_destroy(vm);
	mmdrop(vm->mm);
	fput(vm->vm_file);
	kfree(vm);
	module_put(THIS_MODULE);
}

/*
 * kmh_vm_release() - the last reference to the attachment has gone
 *
 * Where threads of the guest are parked it goes on by itself until they have their
 * contexts back, and keeps the module that long.
 */
void kmh_vm_release(struct kmh_vm *vm)
{
	__module_get(THIS_MODULE);
	if (!kmh_actions_close(vm))
		kmh_vm_free(vm);
}

/* kmh_vm_attach() - make a descriptor for the VM that arg->vm_fd names */
int kmh_vm_attach(const struct kvm_memhook_attach *arg)
{
	struct kmh_vm *vm;
	struct file *file;
	int fd;

	if (arg->api >> 16 != KVM_MEMHOOK_API_MAJOR || arg->api > KVM_MEMHOOK_API)
		return -EPROTO;
	if (arg->flags || arg->reserved)
		return -EINVAL;
	vm = kmh_vm_create(arg->vm_fd, NULL);
	if (IS_ERR(vm))
		return PTR_ERR(vm);
	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0) {
		kmh_vm_release(vm);
		return fd;
	}
	file = anon_inode_getfile("kvm-memhook-vm", &kmh_vm_fops, vm, O_RDWR | O_CLOEXEC);
	if (IS_ERR(file)) {
		put_unused_fd(fd);
		kmh_vm_release(vm);
		return PTR_ERR(file);
	}
	/* The file's release undoes the rest from here on. */
	vm->mapping.host = file_inode(file);
	file->f_mapping = &vm->mapping;
	fd_install(fd, file);
	return fd;
}
