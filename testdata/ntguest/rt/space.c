/*
 * space.c - address spaces: made for processes that start, torn down with those
 * that end.
 */
#include "rt.h"
#include "pte.h"

#ifdef PAE
/* Root tables are four entries, of which each address space has its own directories:
   those of the user's addresses, and one that maps the tables themselves. */
static u64 new_root(void)
{
	u64 root = frame_alloc(), dirs[4];
	u32 user = (u32)(boot->user_end >> 30);

	for (u32 i = 0; i < 4; i++) {
		dirs[i] = frame_alloc();
		map_root(root << 12)[i] = dirs[i] << 12 | PTE_V;
	}
	for (u32 i = user; i < 4; i++) {
		u64 from = PFN(map_root(boot->system_dtb)[i]);
		memcpy(map_frame(5, dirs[i]), map_frame(6, from), PAGE);
	}
	for (u32 i = 0; i < 4; i++)
		((pte_t *)map_frame(5, dirs[3]))[i] = dirs[i] << 12 | 0x63;
	return root << 12;
}

/* The user's half is the same, that of the kernel what all processes have. */
static u64 new_user_root(u64 dtb)
{
	u64 root = frame_alloc();
	u32 user = (u32)(boot->user_end >> 30);

	for (u32 i = 0; i < 4; i++) {
		u64 e = map_root(i < user ? dtb : boot->shadow_pml4)[i];
		map_root(root << 12)[i] = e;
	}
	return root << 12;
}

static void free_directories(u64 dtb)
{
	for (u32 i = 0; i < 4; i++)
		frame_free(PFN(map_root(dtb)[i]));
}
#else
#ifdef __x86_64__
#define SELF_INDEX boot->self_index
#define SELF_FLAGS (PTE_NX | 0x863)
#else
#define SELF_INDEX 0x300
#define SELF_FLAGS 0x63
#endif

/* Index of the kernel's first entry in a root table. */
static u32 kernel_index(void)
{
#ifdef __x86_64__
	return TABLE_ENTRIES / 2;
#else
	return (u32)(boot->user_end / TABLE_SPAN);
#endif
}

static u64 copy_root(u64 from)
{
	u64 pfn = frame_alloc();
	pte_t *t = map_frame(5, pfn), *f = map_frame(6, from >> 12);

	for (u32 i = kernel_index(); i < TABLE_ENTRIES; i++)
		t[i] = f[i];
	return pfn << 12;
}

static u64 new_root(void)
{
	u64 root = copy_root(boot->system_dtb);

	((pte_t *)map_frame(5, root >> 12))[SELF_INDEX] = (pte_t)(root | SELF_FLAGS);
	return root;
}

static u64 new_user_root(u64 dtb)
{
	(void)dtb;
	return copy_root(boot->shadow_pml4);
}
#endif

/* New top-level tables for p: the kernel half of the system's, a self map. */
void address_space_new(struct proc *p)
{
	p->id.dtb = new_root();
	p->id.user_dtb = boot->flags & NT_BOOT_KVA_SHADOW ? new_user_root(p->id.dtb) : 0;
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
	pte_t *t = map_frame((u32)level, table);

	for (u64 i = 0; i < n; i++, va += 1ULL << (12 + INDEX_BITS * level)) {
		u64 e = t[i];
		if (level == 0 && (e & PTE_V || is_transition(e))) {
			u64 pfn = e & PTE_V ? PFN(e) : invalid_pfn(e);
			if (is_own(p, va, pfn))
				frame_free(pfn);
		} else if (e & PTE_V) {
			clear_table(p, PFN(e), level - 1, va, TABLE_ENTRIES);
			frame_free(PFN(e));
			t[i] = 0;
		}
	}
}

/* Free every user page that is p's own, and all lower page tables. */
void address_space_clear(struct proc *p)
{
#ifdef PAE
	for (u32 i = 0; i < boot->user_end >> 30; i++) /* the directories stay: the self map has them too */
		clear_table(p, PFN(map_root(p->id.dtb)[i]), 1, (u64)i << 30, TABLE_ENTRIES);
#else
	clear_table(p, p->id.dtb >> 12, root_level(), 0, kernel_index());
	if (p->id.user_dtb)
		memset(map_frame(7, p->id.user_dtb >> 12), 0, kernel_index() * sizeof(pte_t));
#endif
}

/* The end of what address_space_new made. */
void address_space_free(struct proc *p)
{
#ifdef PAE
	free_directories(p->id.dtb);
#endif
	frame_free(p->id.dtb >> 12);
	if (p->id.user_dtb)
		frame_free(p->id.user_dtb >> 12);
}
