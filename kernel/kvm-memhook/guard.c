// SPDX-License-Identifier: GPL-2.0-only
/*
 * Guards: words of guest memory that the probe looks at, and for holds the worker.
 * Their pages are looked up in process context and held by a reference; when the VMM
 * changes what backs one, the guard is stale, holds its action back, and is looked
 * up again.
 */
#include <linux/mm.h>

#include "action.h"

/*
 * Finds a guard's page, or finds it again. It counts only if nothing that backs
 * guest memory changed meanwhile; otherwise the next pass tries again. Returns an
 * error when there is no RAM any more.
 */
static int kmh_guard_find(struct kmh_vm *vm, struct kmh_guard *g)
{
	struct page *page, *old;
	unsigned long hva, flags;
	u64 seq;
	int err;

	down_read(&vm->map_lock);
	seq = vm->map_seq;
	up_read(&vm->map_lock);
	err = kmh_get_guest_page(vm, g->gfn, false, &page, &hva);
	if (err)
		return err;
	down_read(&vm->map_lock);
	raw_spin_lock_irqsave(&vm->lock, flags);
	old = page;
	if (!vm->invalidating && vm->map_seq == seq) {
		old = g->page;
		g->page = page;
		g->hva = hva;
		g->stale = false;
	}
	raw_spin_unlock_irqrestore(&vm->lock, flags);
	up_read(&vm->map_lock);
	if (old)
		put_page(old);
	return 0;
}

/* kmh_guards_find() - the pages of guards that have none or have moved; under work_mutex */
int kmh_guards_find(struct kmh_vm *vm, struct kmh_action *act)
{
	u32 i;
	int err = 0;

	for (i = 0; i < act->a.guards && !err; i++)
		if (READ_ONCE(act->guard[i].stale))
			err = kmh_guard_find(vm, &act->guard[i]);
	return err;
}

/* kmh_guards_look() - do all conditions hold?; under vm->lock */
enum kmh_guards kmh_guards_look(const struct kmh_action *act)
{
	u32 i;

	for (i = 0; i < act->a.guards; i++) {
		const struct kmh_guard *g = &act->guard[i];
		u64 word;

		if (!g->page || g->stale)
			return KMH_GUARDS_LATER; /* the worker finds the page again */
		word = READ_ONCE(*(u64 *)(page_address(g->page) + g->offset));
		if ((word & g->mask) != g->value)
			return KMH_GUARDS_BROKEN;
	}
	return KMH_GUARDS_HOLD;
}

/* kmh_actions_invalidate() - the VMM changes what backs [start, end); does not sleep */
void kmh_actions_invalidate(struct kmh_vm *vm, unsigned long start, unsigned long end)
{
	struct kmh_action *act;
	unsigned long flags;
	u32 i;

	raw_spin_lock_irqsave(&vm->lock, flags);
	list_for_each_entry(act, &vm->pending, node)
		for (i = 0; i < act->a.guards; i++) {
			struct kmh_guard *g = &act->guard[i];

			if (g->hva < end && start < g->hva + PAGE_SIZE)
				g->stale = true;
		}
	raw_spin_unlock_irqrestore(&vm->lock, flags);
}
