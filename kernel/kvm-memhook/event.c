// SPDX-License-Identifier: GPL-2.0-only
/*
 * Events: a ring that the probe writes and user space reads, by read(2) or in its
 * own mapping of it. What user space writes there is its tail, which is never
 * used as an index without being checked.
 */
#include <linux/mm.h>
#include <linux/sched/signal.h>
#include <linux/uaccess.h>
#include <linux/vmalloc.h>

#include "include/kvm_memhook_client.h"
#include "kmh.h"

#define KMH_RING_BYTES \
	PAGE_ALIGN(PAGE_SIZE + KVM_MEMHOOK_RING_EVENTS * sizeof(struct kvm_memhook_event))

static struct kvm_memhook_event *kmh_slot(struct kmh_vm *vm, u32 index)
{
	return (void *)vm->ring + PAGE_SIZE + index % KVM_MEMHOOK_RING_EVENTS * sizeof(struct kvm_memhook_event);
}

/* Waking takes sleeping locks on some kernels, so the probe leaves it to an interrupt of its own. */
static void kmh_wake(struct irq_work *work)
{
	wake_up_all(&container_of(work, struct kmh_vm, wake)->wait);
}

int kmh_ring_init(struct kmh_vm *vm)
{
	BUILD_BUG_ON(KVM_MEMHOOK_RING_EVENTS & (KVM_MEMHOOK_RING_EVENTS - 1));
	init_irq_work(&vm->wake, kmh_wake);
	if (vm->client)
		return 0;
	vm->ring = vmalloc_user(KMH_RING_BYTES);
	if (!vm->ring)
		return -ENOMEM;
	vm->ring->capacity = KVM_MEMHOOK_RING_EVENTS;
	vm->ring->event_size = sizeof(struct kvm_memhook_event);
	vm->ring->events_offset = PAGE_SIZE;
	return 0;
}

void kmh_ring_destroy(struct kmh_vm *vm)
{
	irq_work_sync(&vm->wake);
	vfree(vm->ring);
}

/* Events that are there; 0 where the reader's tail is nonsense. Under vm->lock or by the reader. */
static u32 kmh_ring_used(struct kmh_vm *vm)
{
	u32 used = READ_ONCE(vm->ring_head) - READ_ONCE(vm->ring->tail);

	return used <= KVM_MEMHOOK_RING_EVENTS ? used : 0;
}

/* kmh_event() - report; the caller holds vm->lock. time_ns and lost are filled in. */
void kmh_event(struct kmh_vm *vm, struct kvm_memhook_event *ev)
{
	ev->time_ns = ktime_get_mono_fast_ns();
	ev->lost = vm->events_lost;
	if (vm->client) {
		vm->client->event(vm->client, ev);
		return;
	}
	if (kmh_ring_used(vm) == KVM_MEMHOOK_RING_EVENTS) {
		WRITE_ONCE(vm->ring->lost, ++vm->events_lost);
		return;
	}
	*kmh_slot(vm, vm->ring_head) = *ev;
	WRITE_ONCE(vm->ring_head, vm->ring_head + 1);
	/* The event before the head, for a reader of the mapping. */
	smp_store_release(&vm->ring->head, vm->ring_head);
	irq_work_queue(&vm->wake);
}

/* kmh_event_gone() - the VM's process has ended; there is always room for that */
void kmh_event_gone(struct kmh_vm *vm)
{
	struct kvm_memhook_event ev = { .type = KVM_MEMHOOK_EVENT_GONE };
	unsigned long flags;

	raw_spin_lock_irqsave(&vm->lock, flags);
	if (vm->ring && kmh_ring_used(vm) == KVM_MEMHOOK_RING_EVENTS) {
		/* In the place of the newest, which counts as lost. */
		WRITE_ONCE(vm->ring_head, vm->ring_head - 1);
		WRITE_ONCE(vm->ring->lost, ++vm->events_lost);
	}
	kmh_event(vm, &ev);
	raw_spin_unlock_irqrestore(&vm->lock, flags);
}

/* Takes the oldest event out of the ring. */
static bool kmh_event_take(struct kmh_vm *vm, struct kvm_memhook_event *ev)
{
	unsigned long flags;
	bool any = false;

	raw_spin_lock_irqsave(&vm->lock, flags);
	if (kmh_ring_used(vm)) {
		u32 tail = READ_ONCE(vm->ring->tail);

		*ev = *kmh_slot(vm, tail);
		WRITE_ONCE(vm->ring->tail, tail + 1);
		any = true;
	}
	raw_spin_unlock_irqrestore(&vm->lock, flags);
	return any;
}

/* kmh_event_read() - whole events; 0 once the VM has gone and all is read */
ssize_t kmh_event_read(struct file *file, char __user *buf, size_t len, loff_t *pos)
{
	struct kmh_vm *vm = file->private_data;
	struct kvm_memhook_event ev;
	size_t n = 0;
	int err;

	if (len < sizeof(ev))
		return -EINVAL;
	while (!kmh_ring_used(vm)) {
		if (kmh_vm_gone(vm))
			return 0;
		if (file->f_flags & O_NONBLOCK)
			return -EAGAIN;
		err = wait_event_interruptible(vm->wait, kmh_ring_used(vm) || kmh_vm_gone(vm));
		if (err)
			return err;
	}
	while (len - n >= sizeof(ev) && kmh_event_take(vm, &ev)) {
		if (copy_to_user(buf + n, &ev, sizeof(ev)))
			return n ? n : -EFAULT;
		n += sizeof(ev);
		cond_resched();
	}
	return n;
}

__poll_t kmh_event_poll(struct file *file, struct poll_table_struct *wait)
{
	struct kmh_vm *vm = file->private_data;
	__poll_t events = 0;

	poll_wait(file, &vm->wait, wait);
	if (kmh_ring_used(vm))
		events |= EPOLLIN | EPOLLRDNORM;
	if (kmh_vm_gone(vm))
		events |= EPOLLHUP;
	return events;
}

/* kmh_ring_mmap() - the ring, shared, from its start or a part of it */
int kmh_ring_mmap(struct kmh_vm *vm, struct vm_area_struct *vma)
{
	if (!(vma->vm_flags & VM_SHARED))
		return -EINVAL;
	if (vma->vm_flags & VM_EXEC)
		return -EACCES;
	return remap_vmalloc_range(vma, vm->ring, vma->vm_pgoff - (KVM_MEMHOOK_RING_OFFSET >> PAGE_SHIFT));
}
