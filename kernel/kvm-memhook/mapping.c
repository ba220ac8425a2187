// SPDX-License-Identifier: GPL-2.0-only
/*
 * A read-only mapping of guest-physical space: offset is guest-physical address.
 * Pages appear on first touch and disappear when the VMM's own mapping of them
 * changes, by way of an MMU notifier on the VMM's address space; nothing is
 * pinned, so balloon, KSM, migration and swap go on as if nobody looked.
 *
 * A page table entry made here holds no reference. It is valid because
 *  - it is inserted under map_lock (read) only while no invalidation is under
 *    way and none has ended since the page was looked up (map_seq);
 *  - an invalidation first takes map_lock (write) to announce itself, which
 *    waits for insertions in progress, and then removes the entries.
 *
 * An invalidation names addresses of the VMM, we need guest-physical ones, and
 * the memslot may be gone by then (memory unplug removes it first). So each slot
 * that a page was mapped from is remembered as a window.
 */
#include <linux/mm.h>
#include <linux/pagemap.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>

#include "kmh.h"

/* Pages mapped around a fault when they are there already; a power of two. */
#define KMH_AROUND 64UL

static const struct address_space_operations kmh_aops;

/*
 * Tasks that are removing entries. That invalidates in the client's address space
 * what a VM of the client's own could have as its memory, so the notifier can come
 * back here; but nothing was ever mapped from there, since pages are not taken from
 * a VM_PFNMAP area, and the second call has nothing to do.
 */
struct kmh_zapping {
	struct list_head node;
	struct task_struct *task;
};

static DEFINE_SPINLOCK(kmh_zapping_lock);
static LIST_HEAD(kmh_zapping);

int kmh_map_init(struct kmh_vm *vm)
{
	vm->windows = kvcalloc(KMH_MAX_WINDOWS, sizeof(*vm->windows), GFP_KERNEL_ACCOUNT);
	if (!vm->windows)
		return -ENOMEM;
	init_rwsem(&vm->map_lock);
	spin_lock_init(&vm->windows_lock);
	/*
	 * An address_space of our own, put on the shared anonymous inode when there
	 * is a descriptor: its entries can be removed without touching anyone else's.
	 */
	address_space_init_once(&vm->mapping);
	vm->mapping.a_ops = &kmh_aops;
	mapping_set_gfp_mask(&vm->mapping, GFP_USER);
	return 0;
}

void kmh_map_destroy(struct kmh_vm *vm)
{
	kvfree(vm->windows);
}

static bool kmh_in_zap(void)
{
	struct kmh_zapping *z;
	bool in = false;

	spin_lock(&kmh_zapping_lock);
	list_for_each_entry(z, &kmh_zapping, node)
		in |= z->task == current;
	spin_unlock(&kmh_zapping_lock);
	return in;
}

static void kmh_zap(struct kmh_vm *vm, gfn_t gfn, u64 npages)
{
	struct kmh_zapping z = { .task = current };

	spin_lock(&kmh_zapping_lock);
	list_add(&z.node, &kmh_zapping);
	spin_unlock(&kmh_zapping_lock);
	/*
	 * This may run inside an invalidation of the VMM's address space, and makes one
	 * of the client's. For lockdep all invalidations are one lock, taken twice here,
	 * and under the i_mmap lock in between. It cannot come to more than two, see above.
	 */
	lockdep_off();
	unmap_mapping_range(&vm->mapping, (loff_t)gfn << PAGE_SHIFT,
			    (loff_t)npages << PAGE_SHIFT, 1);
	lockdep_on();
	spin_lock(&kmh_zapping_lock);
	list_del(&z.node);
	spin_unlock(&kmh_zapping_lock);
}

void kmh_map_zap_all(struct kmh_vm *vm)
{
	kmh_zap(vm, 0, KVM_MEMHOOK_RING_OFFSET >> PAGE_SHIFT);
}

/* Remembers the slot; false when the table is full. */
static bool kmh_window_add(struct kmh_vm *vm, const struct kvm_memory_slot *slot)
{
	struct kmh_window *w, *room = NULL;
	unsigned int i;
	bool ok = true;

	spin_lock(&vm->windows_lock);
	for (i = 0; i < vm->nr_windows; i++) {
		w = &vm->windows[i];
		if (!w->npages)
			room = room ?: w;
		else if (w->gfn == slot->base_gfn && w->npages == slot->npages &&
			 w->hva == slot->userspace_addr)
			goto out;
	}
	if (!room && vm->nr_windows < KMH_MAX_WINDOWS)
		room = &vm->windows[vm->nr_windows++];
	if (room) {
		room->gfn = slot->base_gfn;
		room->npages = slot->npages;
		room->hva = slot->userspace_addr;
	} else {
		ok = false;
	}
out:
	spin_unlock(&vm->windows_lock);
	return ok;
}

/* Removes what is mapped of the VMM's addresses [start, end). */
static void kmh_zap_hva(struct kmh_vm *vm, unsigned long start, unsigned long end)
{
	unsigned int i;

	for (i = 0; ; i++) {
		struct kmh_window w = {};
		unsigned long from, to;

		spin_lock(&vm->windows_lock);
		if (i >= vm->nr_windows) {
			spin_unlock(&vm->windows_lock);
			return;
		}
		w = vm->windows[i];
		spin_unlock(&vm->windows_lock);

		from = max(start, w.hva);
		to = min(end, w.hva + w.npages * PAGE_SIZE);
		if (w.npages && from < to)
			kmh_zap(vm, w.gfn + ((from - w.hva) >> PAGE_SHIFT),
				(PAGE_ALIGN(to) - (from & PAGE_MASK)) >> PAGE_SHIFT);
	}
}

static bool kmh_hva_mapped(struct kmh_vm *vm, unsigned long start, unsigned long end)
{
	unsigned int i;
	bool hit = false;

	spin_lock(&vm->windows_lock);
	for (i = 0; i < vm->nr_windows && !hit; i++) {
		struct kmh_window *w = &vm->windows[i];

		hit = w->npages && start < w->hva + w->npages * PAGE_SIZE && w->hva < end;
	}
	spin_unlock(&vm->windows_lock);
	return hit;
}

int kmh_map_invalidate_start(struct kmh_vm *vm, const struct mmu_notifier_range *range)
{
	if (mmu_notifier_range_blockable(range)) {
		down_write(&vm->map_lock);
	} else {
		/* The OOM reaper may not wait: it passes this range by. */
		if (kmh_hva_mapped(vm, range->start, range->end) ||
		    !down_write_trylock(&vm->map_lock))
			return -EAGAIN;
	}
	vm->invalidating++;
	up_write(&vm->map_lock);
	kmh_actions_invalidate(vm, range->start, range->end);
	/*
	 * A window added between the test above and here belongs to an insertion
	 * that sees invalidating and inserts nothing.
	 */
	if (mmu_notifier_range_blockable(range) && !kmh_in_zap())
		kmh_zap_hva(vm, range->start, range->end);
	return 0;
}

void kmh_map_invalidate_end(struct kmh_vm *vm)
{
	down_write(&vm->map_lock);
	vm->map_seq++;
	vm->invalidating--;
	up_write(&vm->map_lock);
}

/* Is the window still a slot of the guest? */
static bool kmh_window_current(struct kmh_vm *vm, const struct kmh_window *w)
{
	int idx = kmh_slots_enter(vm);
	struct kvm_memory_slot *slot = kmh_slot_of(vm, w->gfn);
	bool same = slot && slot->base_gfn == w->gfn && slot->npages == w->npages &&
		    slot->userspace_addr == w->hva;

	kmh_slots_exit(vm, idx);
	return same;
}

/*
 * kmh_map_sync() - follow a change of the guest-physical layout
 *
 * When it returns, nothing is mapped any more where the guest had no RAM, or
 * other RAM, when it was called. (Changes of what backs RAM need no call.)
 */
void kmh_map_sync(struct kmh_vm *vm)
{
	unsigned int i;

	/* Whoever looked up a slot before now looks again. */
	down_write(&vm->map_lock);
	vm->map_seq++;
	up_write(&vm->map_lock);

	for (i = 0; ; i++) {
		struct kmh_window w;

		spin_lock(&vm->windows_lock);
		if (i >= vm->nr_windows) {
			spin_unlock(&vm->windows_lock);
			return;
		}
		w = vm->windows[i];
		spin_unlock(&vm->windows_lock);
		if (w.npages && !kmh_window_current(vm, &w))
			kmh_zap(vm, w.gfn, w.npages);
		/*
		 * The entry stays: pages may be mapped from it again should the
		 * slot come back while this runs. Stale entries cost a compare.
		 */
	}
}

/* Like kmh_get_pages() but never waits for the VMM's mmap lock. */
static long kmh_try_pages(struct kmh_vm *vm, unsigned long hva, unsigned long n,
			  unsigned int flags, struct page **pages)
{
	long got;

	if (!mmap_read_trylock(vm->mm))
		return -EBUSY;
#ifdef KMH_GUP_HAS_VMAS
	got = get_user_pages_remote(vm->mm, hva, n, flags, pages, NULL, NULL);
#else
	got = get_user_pages_remote(vm->mm, hva, n, flags, pages, NULL);
#endif
	mmap_read_unlock(vm->mm);
	return got;
}

/* A run of pages around a fault, and how it was found. */
struct kmh_run {
	gfn_t gfn;
	unsigned long hva;
	unsigned long n;	/* pages that may be taken from here */
	u64 seq;
};

/* Finds the slot of gfn, remembers it, and notes the state to check later. */
static int kmh_look_up(struct kmh_vm *vm, gfn_t gfn, struct kmh_run *run)
{
	int idx = kmh_slots_enter(vm);
	struct kvm_memory_slot *slot;
	int err = 0;

	/* Before the slot: SYNC counts up after the slots have changed. */
	down_read(&vm->map_lock);
	run->seq = vm->map_seq;
	if (vm->invalidating)
		err = -EBUSY;
	up_read(&vm->map_lock);
	slot = kmh_slot_of(vm, gfn);
	if (!slot)
		err = -ENXIO;
	else if (!kmh_window_add(vm, slot))
		err = -ENOMEM;
	if (!err) {
		run->gfn = gfn;
		run->hva = kmh_hva(slot, gfn);
		run->n = slot->npages - (unsigned long)(gfn - slot->base_gfn);
	}
	kmh_slots_exit(vm, idx);
	return err;
}

/* Inserts pages at addr unless anything has changed since the look-up. */
static vm_fault_t kmh_insert(struct kmh_vm *vm, struct vm_area_struct *vma, unsigned long addr,
			     const struct kmh_run *run, struct page **pages, long n)
{
	vm_fault_t ret = VM_FAULT_NOPAGE;
	unsigned int noreclaim;
	long i;

	/*
	 * The insertion may need a page table. It must not wait for reclaim,
	 * which may wait for an invalidation and that for map_lock.
	 */
	noreclaim = memalloc_noreclaim_save();
	down_read(&vm->map_lock);
	if (!vm->invalidating && vm->map_seq == run->seq)
		for (i = 0; i < n && ret == VM_FAULT_NOPAGE; i++)
			ret = vmf_insert_pfn(vma, addr + i * PAGE_SIZE, page_to_pfn(pages[i]));
	up_read(&vm->map_lock);
	memalloc_noreclaim_restore(noreclaim);
	return ret;
}

/* What follows the page of a fault, as far as it is present already. */
static void kmh_insert_around(struct kmh_vm *vm, struct vm_fault *vmf, struct kmh_run *run)
{
#ifdef KMH_HAS_FOLL_NOFAULT
	struct vm_area_struct *vma = vmf->vma;
	unsigned long addr = (vmf->address & PAGE_MASK) + PAGE_SIZE;
	unsigned long n = KMH_AROUND - 1 - (run->gfn & (KMH_AROUND - 1));
	struct page *pages[KMH_AROUND];
	long got;

	n = min3(n, run->n - 1, (vma->vm_end - addr) >> PAGE_SHIFT);
	if (!n || addr >= vma->vm_end)
		return;
	got = kmh_try_pages(vm, run->hva + PAGE_SIZE, n, FOLL_NOFAULT, pages);
	if (got <= 0)
		return;
	kmh_insert(vm, vma, addr, run, pages, got);
	while (got > 0)
		put_page(pages[--got]);
#endif
}

/*
 * Faults hold the client's mmap lock or that of the VMA. The VMM's is only ever
 * tried for: with two processes that map each other, or one that maps its own
 * guest, waiting for it could wait for ever. Where it is taken the access is
 * simply made again, which costs a fault each time and lets signals through.
 */
static vm_fault_t kmh_fault(struct vm_fault *vmf)
{
	struct kmh_vm *vm = vmf->vma->vm_private_data;
	vm_fault_t ret = VM_FAULT_SIGBUS;
	struct kmh_run run;
	struct page *page;
	long got;
	int err;

	if (kmh_vm_gone(vm) || !mmget_not_zero(vm->mm))
		return VM_FAULT_SIGBUS;
	err = kmh_look_up(vm, vmf->pgoff, &run);
	if (err == -EBUSY)
		goto again;
	if (err)
		goto out;
	got = kmh_try_pages(vm, run.hva, 1, 0, &page);
	if (got == -EBUSY || got == -EAGAIN)
		goto again;
	if (got == -ENOMEM)
		ret = VM_FAULT_OOM;
	if (got != 1)
		goto out;
	ret = kmh_insert(vm, vmf->vma, vmf->address & PAGE_MASK, &run, &page, 1);
	put_page(page);
	if (ret == VM_FAULT_NOPAGE)
		kmh_insert_around(vm, vmf, &run);
	goto out;
again:
	cond_resched();
	ret = VM_FAULT_NOPAGE;
out:
	/* Not the last user's work under a lock of the client's. */
	mmput_async(vm->mm);
	return ret;
}

static const struct vm_operations_struct kmh_vm_ops = {
	.fault = kmh_fault,
};

/* kmh_mmap() - map guest-physical space, read-only and shared */
int kmh_mmap(struct file *file, struct vm_area_struct *vma)
{
	struct kmh_vm *vm = file->private_data;

	if (kmh_vm_gone(vm))
		return -ESRCH;
	if (vma->vm_pgoff >= KVM_MEMHOOK_RING_OFFSET >> PAGE_SHIFT)
		return kmh_ring_mmap(vm, vma);
	if (vma->vm_pgoff + vma_pages(vma) > KVM_MEMHOOK_RING_OFFSET >> PAGE_SHIFT)
		return -EINVAL;
	/*
	 * A writable entry could not be told from one of a page that KSM or a
	 * fork shares, so writing goes through WRITE.
	 */
	if (vma->vm_flags & (VM_WRITE | VM_EXEC))
		return -EACCES;
	if (!(vma->vm_flags & VM_SHARED))
		return -EINVAL;
#ifdef KMH_HAS_VM_FLAGS_MOD
	vm_flags_mod(vma, VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP | VM_DONTCOPY,
		     VM_MAYWRITE | VM_MAYEXEC);
#else
	vma->vm_flags |= VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP | VM_DONTCOPY;
	vma->vm_flags &= ~(VM_MAYWRITE | VM_MAYEXEC);
#endif
	vma->vm_ops = &kmh_vm_ops;
	vma->vm_private_data = vm;
	return 0;
}
