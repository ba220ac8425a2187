/*
 * handle.c - handles of processes and the client ids of PspCidTable.
 *
 * An entry is two words: the object, then the granted access. Process tables
 * point to object headers, the CID table to objects. Since Windows 8 the object
 * is packed without the address's four low bits: into bits 20..63, or in the kernel
 * for 57-bit addresses into bits 11..63. In 32-bit guests its address keeps its place,
 * with other bits below.
 */
#include "rt.h"

#define ENTRIES (PAGE / (2 * sizeof(usize))) /* in a page of handles; the first is never used */
#define IN_PAGE (PAGE / sizeof(usize))
#define ACCESS_BITS 0x1ffffff /* of the second word; the rest is the table's own */

/* How far a packed entry's address is shifted, its four low bits counted. */
u32 cid_shift(void)
{
	return boot->flags & NT_BOOT_CID_57 ? 7 : 16;
}

static usize pack(u64 object)
{
#ifdef __x86_64__
	if (boot->flags & NT_BOOT_CID_PACKED)
		return object << cid_shift() | 1;
#endif
	return (usize)object | 1;
}

static u64 unpack(usize entry)
{
#ifdef __x86_64__
	if (boot->flags & NT_BOOT_CID_PACKED)
		return (u64)((long long)entry >> cid_shift()) & ~0xfULL;
#endif
	return entry & ~(usize)7;
}

usize *cid_entry(u32 id)
{
	u32 n = id / 4;
	if (id % 4 || n % ENTRIES == 0 || n / ENTRIES >= boot->cid_pages.count)
		return NULL;
	return word_at(at64(boot->cid_pages.va)[n / ENTRIES]) + 2 * (n % ENTRIES);
}

void cid_set(u32 id, u64 object)
{
	usize *e = cid_entry(id);
	if (!e)
		bugcheck("client id out of range", id, object);
	e[0] = object ? pack(object) : 0;
}

/* A free id, ascending and wrapping, so that ids are used again but late. */
u32 cid_new(void)
{
	static u32 next;
	u32 limit = (u32)boot->cid_pages.count * ENTRIES * 4;

	for (u32 tries = 0; tries < limit; tries += 4) {
		u32 id = next < boot->first_pid || next >= limit ? (u32)boot->first_pid : next;
		usize *e = cid_entry(id);
		next = id + 4;
		if (e && e[0] == 0)
			return id;
	}
	bugcheck("no client id left", limit, 0);
}

/* Entry n of p's handle table, which may have one or two levels; or NULL. */
static usize *entry_of(struct proc *p, u64 handle)
{
	usize table = *word_at(p->id.eprocess + boot->off.ep_object_table), code, n = (usize)handle / 4;

	if (!table || handle & 3 || n % ENTRIES == 0)
		return NULL;
	code = *word_at(table + boot->off.ht_table_code);
	if ((code & 3) == 0)
		return n < ENTRIES ? word_at(code) + 2 * n : NULL;
	if ((code & 3) == 1 && n / ENTRIES < IN_PAGE) {
		usize page = word_at(code & ~(usize)3)[n / ENTRIES];
		return page ? word_at(page) + 2 * (n % ENTRIES) : NULL;
	}
	return NULL;
}

/* The object's counts of handles and of references go up or down together. */
static void count_handle(u64 object, usize by)
{
	u64 header = object - boot->off.oh_body;
	usize *pointers = word_at(header + boot->off.oh_pointer_count), *handles = word_at(header + boot->off.oh_handle_count);

	if (by == 1 || (*handles && *pointers)) {
		*handles += by;
		*pointers += by;
	}
}

u32 handle_open(struct proc *p, u64 object, u32 access, usize *handle)
{
	for (u32 h = 4; h < 4 * ENTRIES; h += 4) {
		usize *e = entry_of(p, h);
		if (!e)
			break;
		if (e[0])
			continue;
		e[1] = access;
		e[0] = pack(object - boot->off.oh_body);
		count_handle(object, 1);
		*handle = h;
		return 0;
	}
	return STATUS_INSUFFICIENT_RESOURCES;
}

u32 handle_object(struct proc *p, u64 handle, u64 *object, u32 *access)
{
	usize *e = entry_of(p, handle);
	if (!e || !e[0])
		return STATUS_INVALID_HANDLE;
	*object = unpack(e[0]) + boot->off.oh_body;
	*access = (u32)(e[1] & ACCESS_BITS);
	return 0;
}

u32 handle_close(struct proc *p, u64 handle)
{
	u64 object;
	u32 access;
	struct proc *target;

	if (handle_object(p, handle, &object, &access))
		return STATUS_INVALID_HANDLE;
	target = proc_by_object(object);
	if (target && target->handles)
		target->handles--;
	count_handle(object, (usize)-1);
	entry_of(p, handle)[0] = 0;
	return 0;
}

/* How many handles p has open. */
u32 handle_count(struct proc *p)
{
	u32 n = 0;

	for (u32 h = 4; h < 4 * ENTRIES; h += 4) {
		usize *e = entry_of(p, h);
		n += e && e[0];
	}
	return n;
}

/* At its end a process loses its table. */
void handle_close_all(struct proc *p)
{
	for (u32 h = 4; h < 4 * ENTRIES; h += 4)
		handle_close(p, h);
	*word_at(p->id.eprocess + boot->off.ep_object_table) = 0;
}
