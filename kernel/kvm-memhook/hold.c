// SPDX-License-Identifier: GPL-2.0-only
/*
 * HOLD: the entries of the user half of a process's top-level page table are made
 * non-executable. An instruction fetch in user mode then faults, whatever the
 * lower levels say, while the kernel goes on reading and writing the process's
 * memory. The guest's fault handler finds the page present and executable, has
 * nothing to do, and the thread faults again until it is preempted.
 */
#include <linux/mm.h>

#include "action.h"

#define KMH_PTE_PRESENT	BIT_ULL(0)
#define KMH_PTE_AD	(BIT_ULL(5) | BIT_ULL(6))
#define KMH_PTE_NX	BIT_ULL(63)

/* The page of the table that user mode runs on, mapped for writing. */
static u64 *kmh_table(struct kmh_vm *vm, const struct kmh_action *act, struct page **page)
{
	u64 dtb = act->a.user_dtb ? act->a.user_dtb : act->a.dtb;
	unsigned long hva;
	int err = kmh_get_guest_page(vm, dtb >> PAGE_SHIFT, true, page, &hva);

	return err ? ERR_PTR(err) : page_address(*page);
}

/*
 * kmh_hold_apply() - hold what is not held yet
 *
 * Returns the number of entries changed; the caller flushes the TLBs for them.
 */
long kmh_hold_apply(struct kmh_vm *vm, struct kmh_action *act)
{
	struct kmh_hold *h = act->hold;
	struct page *page;
	long changed = 0;
	u64 *table;
	int i;

	table = kmh_table(vm, act, &page);
	if (IS_ERR(table))
		return PTR_ERR(table);
	for (i = 0; i < 256; i++) {
		u64 e = READ_ONCE(table[i]);

		/* The processor sets A and D meanwhile, the guest whatever it likes. */
		while (e & KMH_PTE_PRESENT && !(e & KMH_PTE_NX)) {
			u64 now = cmpxchg64(&table[i], e, e | KMH_PTE_NX);

			if (now == e) {
				h->was[i] = (e | KMH_PTE_NX) & ~KMH_PTE_AD;
				changed++;
				break;
			}
			e = now;
		}
	}
	unpin_user_pages_dirty_lock(&page, 1, true);
	return changed;
}

/* kmh_hold_release() - undo it, where the entries are still as we left them */
void kmh_hold_release(struct kmh_vm *vm, struct kmh_action *act)
{
	struct kmh_hold *h = act->hold;
	struct page *page;
	u64 *table;
	int i;

	table = kmh_table(vm, act, &page);
	if (IS_ERR(table))
		return; /* the page has gone, and with it what was done to it */
	for (i = 0; i < 256; i++) {
		u64 e = READ_ONCE(table[i]);

		while (h->was[i] && (e & ~KMH_PTE_AD) == h->was[i]) {
			u64 now = cmpxchg64(&table[i], e, e & ~KMH_PTE_NX);

			if (now == e)
				break;
			e = now;
		}
	}
	unpin_user_pages_dirty_lock(&page, 1, true);
	kmh_kick(vm, true);
}
