/*
 * handle.c - handles of processes and the client ids of PspCidTable.
 *
 * An entry is 16 bytes: the object, then the granted access. Process tables
 * point to object headers, the CID table to objects. Since Windows 8 the object
 * is packed into bits 20..63 (its low 48 bits, shifted left by 16).
 */
#include "rt.h"

#define ENTRIES 256 /* in a page of handles; the first is never used */
#define ACCESS_BITS 0x1ffffffULL /* of the second word; the rest is the table's own */

static u64 pack(u64 object)
{
	return boot->flags & NT_BOOT_CID_PACKED ? object << 16 | 1 : object | 1;
}

static u64 unpack(u64 entry)
{
	if (boot->flags & NT_BOOT_CID_PACKED)
		return 0xffff000000000000ULL | (entry >> 16 & 0xfffffffffff0ULL);
	return entry & ~7ULL;
}

u64 *cid_entry(u32 id)
{
	u64 n = id / 4;
	if (id % 4 || n % ENTRIES == 0 || n / ENTRIES >= boot->cid_pages.count)
		return NULL;
	return at64(at64(boot->cid_pages.va)[n / ENTRIES]) + 2 * (n % ENTRIES);
}

void cid_set(u32 id, u64 object)
{
	u64 *e = cid_entry(id);
	if (!e)
		bugcheck("client id out of range", id, object);
	e[0] = object ? (boot->flags & NT_BOOT_CID_PACKED ? object << 16 | 1 : object | 1) : 0;
}

/* A free id, ascending and wrapping, so that ids are used again but late. */
u32 cid_new(void)
{
	static u32 next;
	u32 limit = (u32)boot->cid_pages.count * ENTRIES * 4;

	for (u32 tries = 0; tries < limit; tries += 4) {
		u32 id = next < boot->first_pid || next >= limit ? (u32)boot->first_pid : next;
		u64 *e = cid_entry(id);
		next = id + 4;
		if (e && e[0] == 0)
			return id;
	}
	bugcheck("no client id left", limit, 0);
}

/* Entry n of p's handle table, which may have one or two levels; or NULL. */
static u64 *entry_of(struct proc *p, u64 handle)
{
	u64 table = *at64(p->id.eprocess + boot->off.ep_object_table), code, n = handle / 4;

	if (!table || handle & 3 || n % ENTRIES == 0)
		return NULL;
	code = *at64(table + boot->off.ht_table_code);
	if ((code & 3) == 0)
		return n < ENTRIES ? at64(code) + 2 * n : NULL;
	if ((code & 3) == 1 && n / ENTRIES < 512) {
		u64 page = at64(code & ~3ULL)[n / ENTRIES];
		return page ? at64(page) + 2 * (n % ENTRIES) : NULL;
	}
	return NULL;
}

/* The object's counts of handles and of references go up or down together. */
static void count_handle(u64 object, u64 by)
{
	u64 header = object - boot->off.oh_body;
	u64 *pointers = at64(header + boot->off.oh_pointer_count), *handles = at64(header + boot->off.oh_handle_count);

	if (by == 1 || (*handles && *pointers)) {
		*handles += by;
		*pointers += by;
	}
}

u32 handle_open(struct proc *p, u64 object, u32 access, u64 *handle)
{
	for (u64 h = 4; h < 4 * ENTRIES; h += 4) {
		u64 *e = entry_of(p, h);
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
	u64 *e = entry_of(p, handle);
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
	count_handle(object, ~0ULL);
	entry_of(p, handle)[0] = 0;
	return 0;
}

/* How many handles p has open. */
u32 handle_count(struct proc *p)
{
	u32 n = 0;

	for (u64 h = 4; h < 4 * ENTRIES; h += 4) {
		u64 *e = entry_of(p, h);
		n += e && e[0];
	}
	return n;
}

/* At its end a process loses its table. */
void handle_close_all(struct proc *p)
{
	for (u64 h = 4; h < 4 * ENTRIES; h += 4)
		handle_close(p, h);
	*at64(p->id.eprocess + boot->off.ep_object_table) = 0;
}
