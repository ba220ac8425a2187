/*
 * mm.c - physical frames, temporary mappings and page tables.
 *
 * There is no direct map of physical memory: frames are reached through a few
 * pages of kernel address space per processor (boot->hyper), whose PTEs are
 * written through the page tables' self map.
 */
#include "rt.h"
#include "pte.h"

#define TABLE_FLAGS 0x867ULL /* valid, write, user, accessed, dirty, software write */
#define KERNEL_FLAGS 0x8000000000000963ULL
#define HYPER_PER_CPU 15

static u64 heap_next, heap_end;
static u32 *bitmap; /* 1 = free */
static u64 bitmap_words, bitmap_hint, free_frames;

void *heap_alloc(u64 size)
{
	u64 p = (heap_next + 63) & ~63ULL;
	if (p + size > heap_end)
		bugcheck("runtime heap too small", size, heap_end - p);
	heap_next = p + size;
	return (void *)p;
}

void mm_setup(void)
{
	const struct nt_range *r = (const struct nt_range *)boot->free.va;
	u64 top = 0;

	heap_next = boot->heap;
	heap_end = boot->heap + boot->heap_size;
	for (u64 i = 0; i < boot->free.count; i++)
		if (r[i].end > top)
			top = r[i].end;
	top += 0x1000; /* frames of the image that are freed later lie near */
	bitmap_words = (top + 31) / 32;
	bitmap = heap_alloc(bitmap_words * 4);
	memset(bitmap, 0, bitmap_words * 4);
	for (u64 i = 0; i < boot->free.count; i++)
		for (u64 f = r[i].start; f < r[i].end; f++)
			frame_free(f);
}

void frame_free(u64 pfn)
{
	if (pfn / 32 >= bitmap_words)
		return;
	if (bitmap[pfn / 32] & 1u << pfn % 32)
		bugcheck("frame freed twice", pfn, 0);
	bitmap[pfn / 32] |= 1u << pfn % 32;
	free_frames++;
}

u64 frames_free(void)
{
	return free_frames;
}

u64 frame_alloc(void)
{
	for (u64 n = 0; n < bitmap_words; n++) {
		u64 w = bitmap_hint;
		if (bitmap[w]) {
			u32 b = (u32)__builtin_ctz(bitmap[w]);
			u64 pfn = w * 32 + b;
			bitmap[w] &= ~(1u << b);
			free_frames--;
			memset(map_frame(SLOT_TARGET, pfn), 0, PAGE);
			return pfn;
		}
		bitmap_hint = w + 1 < bitmap_words ? w + 1 : 0;
	}
	bugcheck("out of memory", 0, 0);
}

/* The PTE of a kernel address, by way of the root table's entry for itself. */
u64 *self_pte(u64 va)
{
	if (boot->flags & NT_BOOT_LA57)
		return (u64 *)(0xfe00000000000000ULL | (u64)boot->self_index << 48 | ((va >> 9) & 0xfffffffffff8ULL));
	return (u64 *)(0xffff000000000000ULL | (u64)boot->self_index << 39 | ((va >> 9) & 0x7ffffffff8ULL));
}

/* Map a frame at one of this processor's slots; other contents go away. */
void *map_frame(u32 slot, u64 pfn)
{
	u64 va = boot->hyper + (this_cpu()->number * HYPER_PER_CPU + slot) * PAGE;
	u64 *pte = self_pte(va), want = pfn << 12 | 0x8000000000000063ULL;

	if (*pte != want) {
		*pte = want;
		invlpg(va);
	}
	return (void *)va;
}

static u64 index_at(u64 va, int level)
{
	return va >> (12 + 9 * level) & 511;
}

/* The root table's level; the lowest is 0. */
static int root_level(void)
{
	return boot->flags & NT_BOOT_LA57 ? 4 : 3;
}

/* The PTE of va in any address space; slots 0..4 hold the way down, by level. */
u64 *pte_of(u64 dtb, u64 va)
{
	u64 *t = map_frame((u32)root_level(), dtb >> 12);
	for (int level = root_level(); level > 0; level--) {
		u64 e = t[index_at(va, level)];
		if (!(e & PTE_V) || (e & 0x80))
			return NULL;
		t = map_frame((u32)level - 1, PFN(e));
	}
	return &t[index_at(va, 0)];
}

u64 *pte_make(const struct proc *p, u64 va)
{
	u64 *t = map_frame((u32)root_level(), p->id.dtb >> 12);
	for (int level = root_level(); level > 0; level--) {
		u64 *e = &t[index_at(va, level)];
		if (!(*e & PTE_V)) {
			*e = frame_alloc() << 12 | TABLE_FLAGS;
			if (level == root_level() && p->id.user_dtb)
				((u64 *)map_frame(7, p->id.user_dtb >> 12))[index_at(va, level)] = *e;
		}
		t = map_frame((u32)level - 1, PFN(*e));
	}
	return &t[index_at(va, 0)];
}

/* Back [va, va+size) of the kernel with frames; present pages stay. */
void kernel_map_new(u64 va, u64 size)
{
	for (u64 end = va + size; va < end; va += PAGE) {
		u64 *pte = self_pte(va);
		if (!(*pte & PTE_V))
			*pte = frame_alloc() << 12 | KERNEL_FLAGS;
	}
}

/* New top-level tables for p: the kernel half of the system's, a self map. */
void address_space_new(struct proc *p)
{
	u64 pfn = frame_alloc();
	u64 *t = map_frame(5, pfn), *sys = map_frame(6, boot->system_dtb >> 12);

	for (u32 i = 256; i < 512; i++)
		t[i] = sys[i];
	t[boot->self_index] = pfn << 12 | 0x8000000000000863ULL;
	p->id.dtb = pfn << 12;
	p->id.user_dtb = 0;
	if (boot->flags & NT_BOOT_KVA_SHADOW) {
		u64 user = frame_alloc();
		t = map_frame(5, user);
		sys = map_frame(6, boot->shadow_pml4 >> 12);
		for (u32 i = 256; i < 512; i++)
			t[i] = sys[i];
		p->id.user_dtb = user << 12;
	}
}

/* Is a user page's frame p's own, not a section's or the system's? */
static int is_own(const struct proc *p, u64 va, u64 pfn)
{
	const struct nt_region *r = region_of(p, va);

	return r && r->kind != NT_REGION_SHARED && !(r->kind == NT_REGION_IMAGE && pfn_of_proto(r, va) == pfn);
}

/* Free what the first n entries of a table lead to; va is what the table maps first. */
static void clear_table(struct proc *p, u64 table, int level, u64 va, u64 n)
{
	u64 *t = map_frame((u32)level, table);

	for (u64 i = 0; i < n; i++, va += 1ULL << (12 + 9 * level)) {
		u64 e = t[i];
		if (level == 0 && (e & PTE_V || is_transition(e))) {
			u64 pfn = e & PTE_V ? PFN(e) : invalid_pfn(e);
			if (is_own(p, va, pfn))
				frame_free(pfn);
		} else if (e & PTE_V) {
			clear_table(p, PFN(e), level - 1, va, 512);
			frame_free(PFN(e));
			t[i] = 0;
		}
	}
}

/* Free every user page that is p's own, and all lower page tables. */
void address_space_clear(struct proc *p)
{
	clear_table(p, p->id.dtb >> 12, root_level(), 0, 256);
	if (p->id.user_dtb) {
		u64 *u = map_frame(7, p->id.user_dtb >> 12);
		memset(u, 0, PAGE / 2);
	}
}
