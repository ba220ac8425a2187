// SPDX-License-Identifier: GPL-2.0-only
/*
 * Guest-physical memory: memory slots and vectored copies. Pages are reached
 * through the VMM's address space, so whatever backs them (anonymous, file,
 * shared, huge, KSM, swapped out) is the core's business, and permission to
 * write a page is what the VMM itself has.
 */
#include <linux/highmem.h>
#include <linux/mm.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/sort.h>
#include <linux/uaccess.h>

#include "kmh.h"

/* Pages taken in one go: what a copy holds references to at most. */
#define KMH_BATCH 32UL

static struct kvm_memslots *kmh_slots(struct kmh_vm *vm)
{
	/* Address space 0: what the guest sees outside SMM. */
	return srcu_dereference(vm->kvm->memslots[0], &vm->kvm->srcu);
}

/* Memory of confidential guests is not in the VMM's address space. */
static bool kmh_slot_usable(const struct kvm_memory_slot *slot)
{
	if (slot->flags & KVM_MEMSLOT_INVALID)
		return false;
#ifdef KMH_HAS_GUEST_MEMFD
	if (slot->flags & KVM_MEM_GUEST_MEMFD)
		return false;
#endif
	return true;
}

/* kmh_slot_of() - the slot that backs gfn, or NULL for a hole or MMIO */
struct kvm_memory_slot *kmh_slot_of(struct kmh_vm *vm, gfn_t gfn)
{
	struct kvm_memory_slot *slot = __gfn_to_memslot(kmh_slots(vm), gfn);

	return slot && kmh_slot_usable(slot) ? slot : NULL;
}

unsigned long kmh_hva(const struct kvm_memory_slot *slot, gfn_t gfn)
{
	return slot->userspace_addr + (gfn - slot->base_gfn) * PAGE_SIZE;
}

u64 kmh_slots_generation(struct kmh_vm *vm)
{
	int idx = kmh_slots_enter(vm);
	/* Bit 63 marks an update under way; it is not part of the number. */
	u64 gen = kmh_slots(vm)->generation & ~(1ULL << 63);

	kmh_slots_exit(vm, idx);
	return gen;
}

/*
 * kmh_get_pages() - references to pages of the VMM at hva
 *
 * @flags: FOLL_WRITE pins them for writing (release with unpin), otherwise they
 * are to be released with put_page(). Returns how many, or an error; the caller
 * holds a user reference on the mm and no mmap lock.
 */
long kmh_get_pages(struct kmh_vm *vm, unsigned long hva, unsigned long n,
		   unsigned int flags, struct page **pages)
{
	int locked = 1;
	long got;

	if (mmap_read_lock_killable(vm->mm))
		return -EINTR;
#ifdef KMH_GUP_HAS_VMAS
	if (flags & FOLL_WRITE)
		got = pin_user_pages_remote(vm->mm, hva, n, flags, pages, NULL, &locked);
	else
		got = get_user_pages_remote(vm->mm, hva, n, flags, pages, NULL, &locked);
#else
	if (flags & FOLL_WRITE)
		got = pin_user_pages_remote(vm->mm, hva, n, flags, pages, &locked);
	else
		got = get_user_pages_remote(vm->mm, hva, n, flags, pages, &locked);
#endif
	if (locked)
		mmap_read_unlock(vm->mm);
	return got;
}

/*
 * kmh_get_guest_page() - a reference to the page that backs gfn now
 *
 * For writing it is pinned (unpin_user_pages_dirty_lock()), otherwise referenced
 * (put_page()). hva is its address in the VMM. May sleep.
 */
int kmh_get_guest_page(struct kmh_vm *vm, gfn_t gfn, bool write, struct page **page,
		       unsigned long *hva)
{
	struct kvm_memory_slot *slot;
	long got = -ENXIO;
	int idx;

	if (!mmget_not_zero(vm->mm))
		return -ESRCH;
	idx = kmh_slots_enter(vm);
	slot = kmh_slot_of(vm, gfn);
	if (slot && write && slot->flags & KVM_MEM_READONLY) {
		got = -EROFS;
	} else if (slot) {
		*hva = kmh_hva(slot, gfn);
		got = kmh_get_pages(vm, *hva, 1, write ? FOLL_WRITE : 0, page);
	}
	kmh_slots_exit(vm, idx);
	mmput(vm->mm);
	return got < 0 ? got : got == 1 ? 0 : -EFAULT;
}

static void *kmh_kmap(struct page *page)
{
#ifdef KMH_HAS_KMAP_LOCAL
	return kmap_local_page(page);
#else
	return kmap(page);
#endif
}

static void kmh_kunmap(struct page *page, void *va)
{
#ifdef KMH_HAS_KMAP_LOCAL
	kunmap_local(va);
#else
	kunmap(page);
#endif
}

/* Takes pages of one slot from gfn on, at most want; -ENXIO where there is no RAM. */
static long kmh_take(struct kmh_vm *vm, gfn_t gfn, unsigned long want, bool write,
		     struct page **pages)
{
	struct kvm_memory_slot *slot;
	long got = -ENXIO;
	int idx = kmh_slots_enter(vm);

	slot = kmh_slot_of(vm, gfn);
	if (slot && write && (slot->flags & KVM_MEM_READONLY)) {
		got = -EROFS;
	} else if (slot) {
		want = min(want, slot->npages - (unsigned long)(gfn - slot->base_gfn));
		got = kmh_get_pages(vm, kmh_hva(slot, gfn), want, write ? FOLL_WRITE : 0, pages);
		if (!got)
			got = -EFAULT;
	}
	kmh_slots_exit(vm, idx);
	return got;
}

static int kmh_copy_range(struct kmh_vm *vm, u64 gpa, void __user *buf, u32 len, bool write,
			  struct page **pages)
{
	while (len) {
		unsigned long off = gpa & ~PAGE_MASK;
		unsigned long want = min(KMH_BATCH, DIV_ROUND_UP(off + len, PAGE_SIZE));
		long got, i;
		int err = 0;

		if (fatal_signal_pending(current))
			return -EINTR;
		got = kmh_take(vm, gpa >> PAGE_SHIFT, want, write, pages);
		if (got < 0)
			return got == -EFAULT ? -ENXIO : got;

		/* Only references are held while user memory is touched. */
		for (i = 0; i < got && !err; i++) {
			u32 part = min_t(u32, len, PAGE_SIZE - off);
			void *va = kmh_kmap(pages[i]);

			if (write)
				err = copy_from_user(va + off, buf, part) ? -EFAULT : 0;
			else
				err = copy_to_user(buf, va + off, part) ? -EFAULT : 0;
			kmh_kunmap(pages[i], va);
			off = 0;
			gpa += part;
			buf += part;
			len -= part;
		}
		if (write) {
			unpin_user_pages_dirty_lock(pages, got, true);
		} else {
			for (i = 0; i < got; i++)
				put_page(pages[i]);
		}
		if (err)
			return err;
		cond_resched();
	}
	return 0;
}

static int kmh_one_range(struct kmh_vm *vm, const struct kvm_memhook_range *r, bool write,
			 struct page **pages)
{
	if (!r->len || r->len > KVM_MEMHOOK_MAX_RANGE_BYTES || r->gpa + r->len < r->gpa)
		return -EINVAL;
	return kmh_copy_range(vm, r->gpa, u64_to_user_ptr(r->buf), r->len, write, pages);
}

/* kmh_memory_rw() - READ and WRITE; every range has its own outcome */
long kmh_memory_rw(struct kmh_vm *vm, struct kvm_memhook_rw __user *uarg, bool write)
{
	struct kvm_memhook_range __user *uranges;
	struct page *pages[KMH_BATCH];
	struct kvm_memhook_rw rw;
	long ret = 0;
	u32 i;

	if (copy_from_user(&rw, uarg, sizeof(rw)))
		return -EFAULT;
	if (!rw.count || rw.count > KVM_MEMHOOK_MAX_RANGES || rw.failed)
		return -EINVAL;
	if (!mmget_not_zero(vm->mm))
		return -ESRCH;
	uranges = u64_to_user_ptr(rw.ranges);
	for (i = 0; i < rw.count; i++) {
		struct kvm_memhook_range r;

		ret = -EFAULT;
		if (copy_from_user(&r, &uranges[i], sizeof(r)))
			break;
		r.error = kmh_one_range(vm, &r, write, pages);
		if (r.error)
			rw.failed++;
		if (put_user(r.error, &uranges[i].error))
			break;
		ret = r.error == -EINTR ? -EINTR : 0;
		if (ret)
			break;
	}
	mmput(vm->mm);
	if (!ret && put_user(rw.failed, &uarg->failed))
		ret = -EFAULT;
	return ret;
}

static int kmh_slot_order(const void *a, const void *b)
{
	const struct kvm_memhook_slot *x = a, *y = b;

	return x->gpa < y->gpa ? -1 : x->gpa > y->gpa;
}

/* More slots than any VMM has: 32764 is KVM's own limit. */
#define KMH_MAX_SLOTS 32768U

static u32 kmh_collect_slots(struct kvm_memslots *slots, struct kvm_memhook_slot *to, u32 room)
{
	struct kvm_memory_slot *s;
	u32 n = 0;

#ifdef KMH_HAS_SLOT_TREE
	int bkt;

	kvm_for_each_memslot(s, bkt, slots) {
#else
	kvm_for_each_memslot(s, slots) {
#endif
		if (!kmh_slot_usable(s))
			continue;
		if (n < room) {
			to[n].gpa = s->base_gfn << PAGE_SHIFT;
			to[n].size = (u64)s->npages << PAGE_SHIFT;
			to[n].flags = s->flags & KVM_MEM_READONLY ? KVM_MEMHOOK_SLOT_READONLY : 0;
			to[n].reserved = 0;
		}
		n++;
	}
	return n;
}

/* kmh_memory_slots() - GET_SLOTS */
long kmh_memory_slots(struct kmh_vm *vm, struct kvm_memhook_slots __user *uarg)
{
	struct kvm_memhook_slot *tmp = NULL;
	struct kvm_memhook_slots arg;
	long ret = 0;
	u32 room, n;
	int idx;

	if (copy_from_user(&arg, uarg, sizeof(arg)))
		return -EFAULT;
	if (arg.reserved || arg.count > KMH_MAX_SLOTS)
		return -EINVAL;
	room = arg.count;
	if (room) {
		tmp = kvmalloc_array(room, sizeof(*tmp), GFP_KERNEL_ACCOUNT);
		if (!tmp)
			return -ENOMEM;
	}
	idx = kmh_slots_enter(vm);
	n = kmh_collect_slots(kmh_slots(vm), tmp, room);
	arg.generation = kmh_slots(vm)->generation & ~(1ULL << 63);
	kmh_slots_exit(vm, idx);

	if (n > room) {
		ret = -ENOSPC;
	} else if (n) {
		sort(tmp, n, sizeof(*tmp), kmh_slot_order, NULL);
		if (copy_to_user(u64_to_user_ptr(arg.slots), tmp, n * sizeof(*tmp)))
			ret = -EFAULT;
	}
	kvfree(tmp);
	arg.count = n;
	if (ret != -EFAULT && copy_to_user(uarg, &arg, sizeof(arg)))
		ret = -EFAULT;
	return ret;
}
