/*
 * object.c - what a handle to a process lets its holder do.
 *
 * Accounts are told apart by the last part of their SID. LocalSystem, which holds
 * SeDebugPrivilege, may open everything but what is protected; others may open
 * what runs as themselves.
 */
#include "rt.h"

#define LOCAL_SYSTEM 18
#define PROCESS_ALL_ACCESS 0x1fffffu
#define MAXIMUM_ALLOWED 0x2000000u
#define OBJ_VALID_ATTRIBUTES 0x1ff2u
/* Of a protected process: SUSPEND_RESUME, QUERY and SET_LIMITED_INFORMATION, SYNCHRONIZE. */
#define PROTECTED_ACCESS 0x103800u

struct object_attributes {
	u32 length;
	usize root, name;
	u32 attributes;
	usize security, quality;
};

/* GENERIC_* as rights of a process, by the type's mapping. */
static u32 map_generic(u32 access)
{
	u32 specific = access & 0x0fffffff;

	if (access & 0x80000000)
		specific |= 0x20410;
	if (access & 0x40000000)
		specific |= 0x20bea;
	if (access & 0x20000000)
		specific |= 0x121001;
	if (access & 0x10000000)
		specific |= PROCESS_ALL_ACCESS;
	return specific;
}

/* Does a protection level (type, signer << 4) reach another? */
static int dominates(u32 level, u32 other)
{
	return (level & 7) >= (other & 7) && level >> 4 >= other >> 4;
}

static u32 grantable(const struct proc *self, const struct proc *target)
{
	u32 may = 0;

	if (self->id.account == LOCAL_SYSTEM || self->id.account == target->id.account)
		may = PROCESS_ALL_ACCESS;
	if (target->id.protection && !dominates(self->id.protection, target->id.protection))
		may &= PROTECTED_ACCESS;
	return may;
}

/* The process a handle names, if the handle grants all of access. */
u32 process_of(struct proc *self, u64 handle, u32 access, struct proc **out)
{
	u64 object;
	u32 granted, status;

	if (handle == CURRENT_PROCESS) {
		*out = self;
		return 0;
	}
	status = handle_object(self, handle, &object, &granted);
	if (status)
		return status;
	*out = proc_by_object(object);
	if (!*out)
		return STATUS_OBJECT_TYPE_MISMATCH;
	return (granted & access) == access ? 0 : STATUS_ACCESS_DENIED;
}

static int thread_is_in(const struct proc *p, u64 tid)
{
	for (u32 i = 0; i < MAX_THREADS; i++)
		if (threads[i].state != T_FREE && threads[i].state != T_ENDED && threads[i].proc == p && threads[i].tid == tid)
			return 1;
	return 0;
}

/* NtOpenProcess(handle *, access, object attributes, client id), by client id only. */
u32 open_process(struct proc *self, struct frame *f)
{
	struct object_attributes oa;
	usize cid[2], handle, id = arg(self, f, 4);
	u32 access = map_generic((u32)arg(self, f, 2)), may, status;
	struct proc *target;

	if (user_read(self, &oa, arg(self, f, 3), sizeof oa) || user_read(self, &handle, arg(self, f, 1), sizeof handle))
		return STATUS_ACCESS_VIOLATION;
	if (id && user_read(self, cid, id, sizeof cid))
		return STATUS_ACCESS_VIOLATION;
	if (oa.length != sizeof oa || oa.attributes & ~OBJ_VALID_ATTRIBUTES)
		return STATUS_INVALID_PARAMETER;
	if (!id || oa.name)
		return STATUS_INVALID_PARAMETER_MIX;
	target = cid[0] && cid[0] <= 0xffffffff ? proc_by_pid((u32)cid[0]) : NULL;
	if (!target || target->state == P_EXITED || (cid[1] && !thread_is_in(target, cid[1])))
		return STATUS_INVALID_CID;
	may = grantable(self, target);
	if (access & MAXIMUM_ALLOWED)
		access = (access & ~MAXIMUM_ALLOWED) | may;
	if (!access || access & ~may)
		return STATUS_ACCESS_DENIED;
	status = handle_open(self, target->id.eprocess, access, &handle);
	if (status)
		return status;
	target->handles++;
	if (user_write(self, arg(self, f, 1), &handle, sizeof handle)) {
		handle_close(self, handle);
		return STATUS_ACCESS_VIOLATION;
	}
	return 0;
}
