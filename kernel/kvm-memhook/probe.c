// SPDX-License-Identifier: GPL-2.0-only
/*
 * The probe on KVM's kvm_entry tracepoint, which fires on each entry into a
 * guest, with interrupts off, when all that KVM injects is decided. It is
 * registered only while some attachment has use for it.
 */
#include <linux/hash.h>
#include <linux/module.h>
#include <linux/tracepoint.h>

#include "kmh.h"

static DEFINE_MUTEX(kmh_probe_mutex);
static struct tracepoint *kmh_entry_point;
static unsigned int kmh_probed;	/* attachments in the table */

/* Attachments with use for the probe, by their VM; changed under kmh_probe_mutex. */
#define KMH_TABLE_BITS 6
static struct hlist_head kmh_table[1 << KMH_TABLE_BITS];

static struct hlist_head *kmh_bucket(const struct kvm *kvm)
{
	return &kmh_table[hash_ptr(kvm, KMH_TABLE_BITS)];
}

static void kmh_entry(struct kmh_vm *vm, struct kvm_vcpu *vcpu)
{
	struct kmh_state st;

	kmh_regs_entry(vm, vcpu);
	raw_spin_lock(&vm->lock);
	vm->entered = true;
	if (kmh_cpu->state(vcpu, &st)) {
		kmh_hooks_entry(vm, vcpu, &st);
		kmh_actions_entry(vm, vcpu, &st);
	} else {
		kmh_actions_entry(vm, vcpu, NULL);
	}
	raw_spin_unlock(&vm->lock);
}

/* The tracepoint's further arguments differ from kernel to kernel and are left alone. */
static void kmh_on_entry(void *data, struct kvm_vcpu *vcpu)
{
	struct kmh_vm *vm;

	rcu_read_lock();
	hlist_for_each_entry_rcu(vm, kmh_bucket(vcpu->kvm), by_kvm)
		if (vm->kvm == vcpu->kvm)
			kmh_entry(vm, vcpu);
	rcu_read_unlock();
}

/* The tracepoint, by its name in the kvm module, whether exported or not. */
static struct tracepoint *kmh_find_entry_point(void)
{
	struct tracepoint *found = NULL;
	struct module *kvm;
	unsigned int i;

	if (!kmh_kvm_module(&kvm))
		return NULL;
	for (i = 0; i < kvm->num_tracepoints; i++) {
		struct tracepoint *tp = tracepoint_ptr_deref(&kvm->tracepoints_ptrs[i]);

		if (!strcmp(tp->name, "kvm_entry"))
			found = tp;
	}
	module_put(kvm);
	return found;
}

/* kmh_probe_get() - have the probe look at this attachment's VM; may be nested */
int kmh_probe_get(struct kmh_vm *vm)
{
	int err = 0;

	mutex_lock(&kmh_probe_mutex);
	if (vm->probe_users++)
		goto out;
	/* The VM that is attached keeps the kvm module. */
	if (!kmh_probed) {
		kmh_entry_point = kmh_find_entry_point();
		err = kmh_entry_point ? tracepoint_probe_register(kmh_entry_point, kmh_on_entry, NULL) :
					-EOPNOTSUPP;
	}
	if (err) {
		vm->probe_users--;
		goto out;
	}
	kmh_probed++;
	hlist_add_head_rcu(&vm->by_kvm, kmh_bucket(vm->kvm));
out:
	mutex_unlock(&kmh_probe_mutex);
	return err;
}

/* kmh_probe_put() - the last one waits until no probe looks at the VM any more */
void kmh_probe_put(struct kmh_vm *vm)
{
	mutex_lock(&kmh_probe_mutex);
	if (!--vm->probe_users) {
		hlist_del_rcu(&vm->by_kvm);
		if (!--kmh_probed)
			tracepoint_probe_unregister(kmh_entry_point, kmh_on_entry, NULL);
		tracepoint_synchronize_unregister();
		synchronize_rcu();
	}
	mutex_unlock(&kmh_probe_mutex);
}
