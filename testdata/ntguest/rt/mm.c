/*
 * mm.c - physical frames, temporary mappings, page tables.
 *
 * There is no direct map of physical memory: frames are reached through a few
 * pages of kernel address space per processor (boot->hyper), whose PTEs are
 * written through the page tables' self map.
 */
#include "rt.h"
#include "pte.h"

#define TABLE_FLAGS 0x867ULL /* valid, write, user, accessed, dirty, software write */
#define KERNEL_FLAGS (PTE_NX | 0x963)
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
	return PTR(void, p);
}

void mm_setup(void)
{
	const struct nt_range *r = PTR(const struct nt_range, boot->free.va);
	u64 top = 0;

	heap_next = boot->heap;
	heap_end = boot->heap + boot->heap_size;
	for (u64 i = 0; i < boot->free.count; i++)
		if (r[i].end > top)
			top = r[i].end;
	top += 0x1000; /* frames of the image that are freed later lie near */
	bitmap_words = (top + 31) / 32;
	bitmap = heap_alloc(bitmap_words * 4);
	memset(bitmap, 0, (usize)bitmap_words * 4);
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
pte_t *self_pte(u64 va)
{
#ifdef __x86_64__
	if (boot->flags & NT_BOOT_LA57)
		return (u64 *)(0xfe00000000000000ULL | (u64)boot->self_index << 48 | ((va >> 9) & 0xfffffffffff8ULL));
	return (u64 *)(0xffff000000000000ULL | (u64)boot->self_index << 39 | ((va >> 9) & 0x7ffffffff8ULL));
#else
	return PTR(pte_t, 0xc0000000) + (usize)va / PAGE;
#endif
}

/* Map a frame at one of this processor's slots; other contents go away. */
void *map_frame(u32 slot, u64 pfn)
{
	u64 va = boot->hyper + (this_cpu()->number * HYPER_PER_CPU + slot) * PAGE;
	pte_t *pte = self_pte(va), want = (pte_t)(pfn << 12 | PTE_NX | 0x63);

	if (*pte != want) {
		*pte = want;
		invlpg(va);
	}
	return PTR(void, va);
}

static u64 index_at(u64 va, int level)
{
	return va >> (12 + INDEX_BITS * level) & (TABLE_ENTRIES - 1);
}

int root_level(void)
{
#ifdef __x86_64__
	return boot->flags & NT_BOOT_LA57 ? 4 : 3;
#else
	return sizeof(pte_t) / 4; /* 1, or with PAE 2 */
#endif
}

/* A root table, which with PAE is four entries anywhere in a page. */
pte_t *map_root(u64 dtb)
{
	return PTR(pte_t, (usize)map_frame((u32)root_level(), dtb >> 12) + (dtb & PAGE_MASK));
}

/* The PTE of va in any address space; slots 0..4 hold the way down, by level. */
pte_t *pte_of(u64 dtb, u64 va)
{
	pte_t *t = map_root(dtb);
	for (int level = root_level(); level > 0; level--) {
		u64 e = t[index_at(va, level)];
		if (!(e & PTE_V) || (e & 0x80))
			return NULL;
		t = map_frame((u32)level - 1, PFN(e));
	}
	return &t[index_at(va, 0)];
}

pte_t *pte_make(const struct proc *p, u64 va)
{
	pte_t *t = map_root(p->id.dtb);
	for (int level = root_level(); level > 0; level--) {
		pte_t *e = &t[index_at(va, level)];
		if (!(*e & PTE_V)) {
			*e = (pte_t)(frame_alloc() << 12 | TABLE_FLAGS);
			if (level == root_level() && p->id.user_dtb) /* with PAE both have all directories */
				((pte_t *)map_frame(7, p->id.user_dtb >> 12))[index_at(va, level)] = *e;
		}
		t = map_frame((u32)level - 1, PFN(*e));
	}
	return &t[index_at(va, 0)];
}

/* Back [va, va+size) of the kernel with frames; present pages stay. */
void kernel_map_new(u64 va, u64 size)
{
	for (u64 end = va + size; va < end; va += PAGE) {
		pte_t *pte = self_pte(va);
		if (!(*pte & PTE_V))
			*pte = (pte_t)(frame_alloc() << 12 | KERNEL_FLAGS);
	}
}
