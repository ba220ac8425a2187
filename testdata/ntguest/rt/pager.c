/*
 * pager.c - user pages: demand-zero, file-backed through prototype PTEs,
 * copy-on-write, transition; and the runtime's own access to user memory.
 *
 * What a page without a valid PTE is comes from its transition PTE, else from
 * the process's region table.
 */
#include "rt.h"
#include "pte.h"

const struct nt_region *region_of(const struct proc *p, u64 va)
{
	u32 lo = 0, hi = p->id.regions;

	while (lo < hi) {
		u32 mid = (lo + hi) / 2;
		const struct nt_region *r = &p->regions[mid];
		if (va < r->start)
			hi = mid;
		else if (va >= r->end)
			lo = mid + 1;
		else
			return r;
	}
	return NULL;
}

/* Where va's page lies in its segment; NULL if the builder's table is short. */
static const struct nt_segment *segment_page(const struct nt_region *r, u64 va, u64 *page)
{
	const struct nt_segment *s = PTR(const struct nt_segment, boot->segments.va) + r->segment;

	*page = r->first_page + (va - r->start) / PAGE;
	return r->segment < boot->segments.count && *page < s->count ? s : NULL;
}

/* The frame a prototype PTE has now, or ~0. */
u64 pfn_of_proto(const struct nt_region *r, u64 va)
{
	u64 page, pte;
	const struct nt_segment *s = segment_page(r, va, &page);

	if (!s)
		return ~0ULL;
	pte = PTR(pte_t, s->proto)[page];
	if (pte & PTE_V)
		return PFN(pte);
	return is_transition(pte) ? invalid_pfn(pte) : ~0ULL;
}

static u64 copy_of(u64 pfn)
{
	u64 copy = frame_alloc();
	memcpy(map_frame(SLOT_TARGET, copy), map_frame(SLOT_SOURCE, pfn), PAGE);
	return copy;
}

/* The frame of an image page, read from the RAM disk if no process has it. */
static u64 image_frame(const struct nt_region *r, u64 va)
{
	u64 page, pfn = pfn_of_proto(r, va);
	const struct nt_segment *s = segment_page(r, va, &page);

	if (!s)
		return ~0ULL;
	if (pfn == ~0ULL) {
		u32 disk = at32(s->backing)[page];
		pfn = disk ? copy_of(disk) : frame_alloc();
	}
	PTR(pte_t, s->proto)[page] = (pte_t)(pfn << 12 | PTE_NX | 0x121); /* valid, accessed, global */
	return pfn;
}

static int denied(u32 prot, u32 access)
{
	if (prot == 0 || prot & PAGE_NOACCESS)
		return 1;
	if (access & ACCESS_WRITE && !(prot & ANY_WRITE))
		return 1;
	return access & ACCESS_EXEC && !(prot & ANY_EXEC);
}

static u32 write_to_valid(struct proc *p, u64 va, pte_t *pte)
{
	const struct nt_region *r = region_of(p, va);
	u64 old = *pte, pfn = PFN(old);

	if (!(old & PTE_COW))
		return STATUS_ACCESS_VIOLATION;
	if (!r || r->kind != NT_REGION_IMAGE || pfn_of_proto(r, va) == pfn)
		pfn = copy_of(pfn);
	*pte = (pte_t)(pfn << 12 | (old & PTE_NX) | pte_flags(PAGE_EXECUTE_READWRITE));
	invlpg(va);
	flush_remote(p);
	return 0;
}

/* Make va's page present for access, or say which exception it is. */
u32 page_in(struct proc *p, u64 va, u32 access)
{
	const struct nt_region *r;
	pte_t *pte;
	u64 old, pfn;
	u32 prot;

	va &= ~PAGE_MASK;
	if (va >= boot->user_end)
		return STATUS_ACCESS_VIOLATION;
	pte = pte_of(p->id.dtb, va);
	old = pte ? *pte : 0;
	if (old & PTE_V) {
		if (access & ACCESS_WRITE && !(old & PTE_HW_WRITE))
			return write_to_valid(p, va, pte);
		if (access & ACCESS_EXEC && old & PTE_NX)
			return STATUS_ACCESS_VIOLATION;
		invlpg(va);
		return 0;
	}
	r = region_of(p, va);
	if (is_transition(old)) {
		prot = page_of_mm((u32)(old >> 5) & 31);
		if (!(old >> 5 & 31) && r)
			prot = r->prot;
	} else if (r && r->kind == NT_REGION_ALLOC) {
		prot = page_of_mm((u32)(old >> 5) & 31);
	} else {
		prot = r ? r->prot : 0;
	}
	if (prot & PAGE_GUARD)
		return STATUS_GUARD_PAGE_VIOLATION;
	if (denied(prot, access))
		return STATUS_ACCESS_VIOLATION;
	if (is_transition(old)) {
		pfn = invalid_pfn(old);
	} else {
		switch (r->kind) {
		case NT_REGION_ZERO:
			pfn = frame_alloc();
			break;
		case NT_REGION_INIT:
			pfn = at32(r->backing)[(va - r->start) / PAGE];
			pfn = pfn ? copy_of(pfn) : frame_alloc();
			break;
		case NT_REGION_SHARED:
			pfn = at32(r->backing)[(va - r->start) / PAGE];
			break;
		case NT_REGION_ALLOC:
			if (!old)
				return STATUS_ACCESS_VIOLATION;
			pfn = frame_alloc();
			break;
		case NT_REGION_IMAGE:
			pfn = image_frame(r, va);
			if (pfn == ~0ULL)
				return STATUS_ACCESS_VIOLATION;
			break;
		default:
			return STATUS_ACCESS_VIOLATION;
		}
	}
	pte = pte_make(p, va);
	*pte = (pte_t)(pfn << 12 | pte_flags(prot));
	if (access & ACCESS_WRITE && *pte & PTE_COW)
		return write_to_valid(p, va, pte);
	return 0;
}

/* User memory of any process, whatever address space is loaded. */
static int user_copy(struct proc *p, u64 va, void *kernel, u64 n, u32 access)
{
	u8 *k = kernel;

	while (n) {
		u64 part = PAGE - (va & PAGE_MASK);
		u8 *frame;
		if (part > n)
			part = n;
		if (page_in(p, va, access))
			return -1;
		frame = map_frame(SLOT_USER, PFN(*pte_of(p->id.dtb, va)));
		if (access & ACCESS_WRITE)
			memcpy(frame + (va & PAGE_MASK), k, (usize)part);
		else
			memcpy(k, frame + (va & PAGE_MASK), (usize)part);
		va += part;
		k += part;
		n -= part;
	}
	return 0;
}

int user_read(struct proc *p, void *to, u64 va, u64 n)
{
	return user_copy(p, va, to, n, 0);
}

int user_write(struct proc *p, u64 va, const void *from, u64 n)
{
	return user_copy(p, va, (void *)(usize)from, n, ACCESS_WRITE);
}

/* What va's page is now, and the physical address of its frame, 0 without one. */
const char *page_state(struct proc *p, u64 va, u64 *pa)
{
	const struct nt_region *r = region_of(p, va);
	pte_t *pte = va < boot->user_end ? pte_of(p->id.dtb, va) : NULL;
	u64 old = pte ? *pte : 0, pfn;

	*pa = 0;
	if (old & PTE_V || is_transition(old)) {
		*pa = (old & PTE_V ? PFN(old) : invalid_pfn(old)) << 12;
		return old & PTE_V ? "present" : "transition";
	}
	if (!r || r->kind == NT_REGION_NONE || (r->kind == NT_REGION_ALLOC && !old))
		return "none";
	if (r->kind == NT_REGION_IMAGE) {
		pfn = pfn_of_proto(r, va);
		if (pfn == ~0ULL)
			return "file";
		*pa = pfn << 12;
		return "section";
	}
	return "demand";
}

int user_peek(struct proc *p, u64 va, u32 *value)
{
	u64 pa;

	page_state(p, va, &pa);
	if (!pa)
		return -1;
	*value = *at32((usize)map_frame(SLOT_USER, pa >> 12) + (va & PAGE_MASK & ~3ULL));
	return 0;
}

static int valid_prot(u32 prot)
{
	u32 base = prot & 0xff;
	return !(prot & ~0x1ffu) && base && !(base & (base - 1));
}

/*
 * Set the protection of committed pages. Pages that are not present are paged
 * in first: the protection is kept in the PTE, valid or transition.
 */
u32 user_protect(struct proc *p, u64 va, u64 size, u32 prot, u32 *old)
{
	u64 end = (va + size + PAGE_MASK) & ~PAGE_MASK;

	va &= ~PAGE_MASK;
	if (!valid_prot(prot))
		return STATUS_INVALID_PAGE_PROTECTION;
	if (end <= va || end - va > 256 * PAGE)
		return STATUS_INVALID_PARAMETER;
	for (u64 a = va; a < end; a += PAGE) {
		const struct nt_region *r = region_of(p, a);
		if (!r || r->kind == NT_REGION_NONE || r->kind == NT_REGION_SHARED)
			return STATUS_NOT_COMMITTED;
	}
	for (u64 a = va; a < end; a += PAGE) {
		const struct nt_region *r = region_of(p, a);
		pte_t *pte = pte_of(p->id.dtb, a);
		u64 pfn;
		u32 was, now = prot;
		if (pte && is_transition(*pte)) {
			was = page_of_mm((u32)(*pte >> 5) & 31);
			pfn = invalid_pfn(*pte);
		} else if (page_in(p, a, 0)) {
			return STATUS_NOT_COMMITTED;
		} else {
			pte = pte_of(p->id.dtb, a);
			was = prot_of_pte(*pte);
			pfn = PFN(*pte);
		}
		if (a == va)
			*old = was;
		if (r->kind == NT_REGION_IMAGE && pfn_of_proto(r, a) == pfn) {
			if (prot == PAGE_READWRITE)
				now = PAGE_WRITECOPY;
			if (prot == PAGE_EXECUTE_READWRITE)
				now = PAGE_EXECUTE_WRITECOPY;
		}
		pte = pte_of(p->id.dtb, a);
		if (now & (PAGE_GUARD | PAGE_NOACCESS))
			*pte = (pte_t)transition_pte(pfn, now);
		else
			*pte = (pte_t)(pfn << 12 | pte_flags(now));
		invlpg(a);
	}
	flush_remote(p);
	return 0;
}

static const struct nt_region *arena_of(const struct proc *p)
{
	for (u32 i = 0; i < p->id.regions; i++)
		if (p->regions[i].kind == NT_REGION_ALLOC)
			return &p->regions[i];
	return NULL;
}

/* Take pages from the process's ALLOC arena, first fit; the VAD is there already. */
u32 user_alloc(struct proc *p, u64 *va, u64 *size, u32 prot)
{
	const struct nt_region *r = arena_of(p);
	u64 bytes = (*size + PAGE_MASK) & ~PAGE_MASK, at;
	u32 n = p->allocations, i;

	if (!valid_prot(prot) || prot & (PAGE_WRITECOPY | PAGE_EXECUTE_WRITECOPY))
		return STATUS_INVALID_PAGE_PROTECTION;
	if (!bytes)
		return STATUS_INVALID_PARAMETER;
	if (!r || n == MAX_ALLOCATIONS || bytes > r->end - r->start)
		return STATUS_NO_MEMORY;
	at = r->start;
	for (i = 0; i < n && p->allocation[i].va - at < bytes; i++) /* kept in order */
		at = (p->allocation[i].va + p->allocation[i].size + 0xffff) & ~0xffffULL;
	if (i == n && (at > r->end || r->end - at < bytes))
		return STATUS_NO_MEMORY;
	for (u32 k = n; k > i; k--)
		p->allocation[k] = p->allocation[k - 1];
	p->allocation[i].va = *va = at;
	p->allocation[i].size = *size = bytes;
	p->allocations++;
	for (u64 a = at; a < at + bytes; a += PAGE)
		*pte_make(p, a) = (pte_t)((u64)mm_of_page(prot) << 5 | boot->swizzle_bit); /* demand-zero */
	return 0;
}

/* Release a whole allocation; nothing less is offered. */
u32 user_free(struct proc *p, u64 *va, u64 *size)
{
	u32 i = 0;

	while (i < p->allocations && p->allocation[i].va != *va)
		i++;
	if (i == p->allocations)
		return STATUS_MEMORY_NOT_ALLOCATED;
	*size = p->allocation[i].size;
	for (u64 a = *va; a < *va + *size; a += PAGE) {
		pte_t *pte = pte_of(p->id.dtb, a);
		u64 old = *pte;
		*pte = 0;
		invlpg(a);
		/* A frame is used again only when no processor can reach it here. */
		if (old & PTE_V || is_transition(old)) {
			if (old & PTE_V)
				flush_remote(p);
			frame_free(old & PTE_V ? PFN(old) : invalid_pfn(old));
		}
	}
	for (p->allocations--; i < p->allocations; i++)
		p->allocation[i] = p->allocation[i + 1];
	return 0;
}

/* Take p's resident pages out of its working set; returns how many. */
u64 trim(struct proc *p)
{
	u64 n = 0;

	for (u32 i = 0; i < p->id.regions; i++) {
		const struct nt_region *r = &p->regions[i];
		if (r->kind == NT_REGION_SHARED || r->kind == NT_REGION_NONE)
			continue;
		for (u64 va = r->start; va < r->end; va += PAGE) {
			pte_t *pte = pte_of(p->id.dtb, va);
			if (!pte) {
				va |= TABLE_SPAN - PAGE; /* no page table: behind what it would map */
				continue;
			}
			if (!(*pte & PTE_V))
				continue;
			if (r->kind == NT_REGION_IMAGE && pfn_of_proto(r, va) == PFN(*pte))
				*pte = prot_of_pte(*pte) == r->prot ? 0 : (pte_t)transition_pte(PFN(*pte), prot_of_pte(*pte));
			else
				*pte = (pte_t)transition_pte(PFN(*pte), prot_of_pte(*pte));
			n++;
		}
	}
	if (this_cpu()->cr3 == p->id.dtb)
		write_cr3(read_cr3());
	flush_remote(p);
	return n;
}

/*
 * Whether a process has the frame of a section's page, out of its working set if out
 * is set where nothing of its own is lost by that.
 */
static int held(struct proc *q, const struct nt_region *r, u64 va, u64 pfn, int out)
{
	const struct nt_region *own;
	pte_t *pte;

	if (q->state == P_FREE || q->state == P_EXITED || !q->id.regions)
		return 0;
	own = region_of(q, va);
	if (!own || own->kind != NT_REGION_IMAGE || own->segment != r->segment)
		return 0;
	pte = pte_of(q->id.dtb, va);
	if (!pte || (*pte & PTE_V ? PFN(*pte) : is_transition(*pte) ? invalid_pfn(*pte) : ~0ULL) != pfn)
		return 0;
	if (!out || !(*pte & PTE_V) || prot_of_pte(*pte) != own->prot)
		return 1;
	*pte = 0;
	return 0;
}

/*
 * Take the pages of p's images that nobody has written to out of all memory: out of
 * every process, and out of their sections. They are in the files alone then. Returns
 * how many.
 */
u64 evict(struct proc *p)
{
	u64 n = 0;

	for (int drop = 0; drop < 2; drop++) { /* a frame is used again only when no processor can reach it */
		for (u32 i = 0; i < p->id.regions; i++) {
			const struct nt_region *r = &p->regions[i];
			if (r->kind != NT_REGION_IMAGE)
				continue;
			for (u64 va = r->start; va < r->end; va += PAGE) {
				u64 page, pfn = pfn_of_proto(r, va);
				const struct nt_segment *s = segment_page(r, va, &page);
				int kept = 0;
				if (!s || pfn == ~0ULL)
					continue;
				for (u32 k = 0; k < MAX_PROCS; k++)
					kept |= held(&procs[k], r, va, pfn, !drop);
				if (!drop || kept)
					continue;
				PTR(pte_t, s->proto)[page] = (pte_t)at64(s->file)[page];
				if (at32(s->backing)[page] != pfn)
					frame_free(pfn);
				n++;
			}
		}
		for (u32 k = 0; !drop && k < MAX_PROCS; k++)
			if (procs[k].state != P_FREE && procs[k].state != P_EXITED)
				flush_remote(&procs[k]);
		write_cr3(read_cr3());
	}
	return n;
}
