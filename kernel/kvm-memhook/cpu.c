// SPDX-License-Identifier: GPL-2.0-only
/*
 * vCPU state that is the same for both vendors: which one this is, registers in
 * struct kvm_vcpu, interrupting vCPUs, snapshots.
 */
#include <linux/delay.h>
#include <linux/ktime.h>
#include <linux/smp.h>
#include <linux/uaccess.h>

#include "kmh.h"

const struct kmh_cpu_ops *kmh_cpu;

int kmh_cpu_init(void)
{
	if (boot_cpu_has(X86_FEATURE_SVM))
		kmh_cpu = &kmh_svm_ops;
	else if (boot_cpu_has(X86_FEATURE_VMX))
		kmh_cpu = &kmh_vmx_ops;
	else
		return -ENODEV;
	return 0;
}

/* Is the vCPU's state encrypted (SEV-ES, TDX)? */
bool kmh_cpu_protected(const struct kvm_vcpu *vcpu)
{
#ifdef KMH_HAS_STATE_PROTECTED
	return vcpu->arch.guest_state_protected;
#else
	return false;
#endif
}

/* Does it execute a guest of its guest's? */
bool kmh_cpu_nested(const struct kvm_vcpu *vcpu)
{
	return vcpu->arch.hflags & HF_GUEST_MASK;
}

unsigned long kmh_cpu_rip(const struct kvm_vcpu *vcpu)
{
#ifdef KMH_HAS_ARCH_RIP
	return vcpu->arch.rip;
#else
	return vcpu->arch.regs[VCPU_REGS_RIP];
#endif
}

void kmh_cpu_set_rip(struct kvm_vcpu *vcpu, unsigned long rip)
{
#ifdef KMH_HAS_ARCH_RIP
	vcpu->arch.rip = rip;
#else
	vcpu->arch.regs[VCPU_REGS_RIP] = rip;
#endif
}

/* Which bits of CR3 are a DTB, and where user space ends (Intel SDM 3A, 4.3 to 4.5). */
void kmh_cpu_paging(struct kmh_state *st, u64 cr3, u64 cr4)
{
	if (st->efer & EFER_LMA) {
		st->dtb_mask = 0x000ffffffffff000ULL;
		st->user_end = cr4 & X86_CR4_LA57 ? 1ULL << 56 : 1ULL << 47;
		if (!st->code64)
			st->user_end = 1ULL << 32;
	} else {
		st->dtb_mask = cr4 & X86_CR4_PAE ? 0xffffffe0ULL : 0xfffff000ULL;
		st->user_end = 1ULL << 32;
	}
	st->dtb = cr3 & st->dtb_mask;
}

static void kmh_nothing(void *unused)
{
}

/*
 * kmh_kick() - have every vCPU that executes leave the guest and enter it again
 *
 * With flush_tlb no vCPU executes with translations from before the call once it
 * has returned: one that is outside has a request to serve first, and one that
 * is inside has left when its CPU has answered the interrupt (see the memory
 * barriers of KVM's own requests, Documentation/virt/kvm/vcpu-requests.rst).
 */
void kmh_kick(struct kmh_vm *vm, bool flush_tlb)
{
	int i, cpu, n = atomic_read(&vm->kvm->online_vcpus);

	for (i = 0; i < n; i++) {
		struct kvm_vcpu *vcpu = kvm_get_vcpu(vm->kvm, i);

		if (!vcpu)
			continue;
		if (flush_tlb) {
			kvm_make_request(KVM_REQ_TLB_FLUSH, vcpu);
			smp_mb__after_atomic();
		}
		if (READ_ONCE(vcpu->mode) == OUTSIDE_GUEST_MODE)
			continue;
		cpu = READ_ONCE(vcpu->cpu);
		if (cpu >= 0 && cpu_online(cpu))
			smp_call_function_single(cpu, kmh_nothing, NULL, flush_tlb);
	}
}

/*
 * Snapshots. Where a vCPU's state is in memory while it does not execute, it is
 * copied from there, and the copy is good if the vCPU did not enter meanwhile.
 * Elsewhere the probe takes it at the vCPU's next entry.
 */
struct kmh_snap {
	struct list_head node;
	struct kvm_vcpu *vcpu;
	struct kvm_memhook_regs *regs;
	int result;		/* 1 while it is waited for; kmh_snap_lock */
};

/* One at a time on the whole host: it is rare, and the probe's list stays short. */
static DEFINE_MUTEX(kmh_snap_mutex);
static DEFINE_RAW_SPINLOCK(kmh_snap_lock);
static struct kmh_snap *kmh_snap;

/* kmh_regs_entry() - in the probe: fill the snapshot that waits for this vCPU */
void kmh_regs_entry(struct kmh_vm *vm, struct kvm_vcpu *vcpu)
{
	struct kmh_snap *s;

	if (!READ_ONCE(kmh_snap))
		return;
	raw_spin_lock(&kmh_snap_lock);
	s = kmh_snap;
	if (s && s->vcpu == vcpu && s->result > 0)
		s->result = kmh_cpu->regs(vcpu, s->regs) ? 0 : -EOPNOTSUPP;
	raw_spin_unlock(&kmh_snap_lock);
}

static int kmh_snap_result(struct kmh_snap *s)
{
	unsigned long flags;
	int result;

	raw_spin_lock_irqsave(&kmh_snap_lock, flags);
	result = s->result;
	raw_spin_unlock_irqrestore(&kmh_snap_lock, flags);
	return result;
}

static long kmh_regs_probe(struct kmh_vm *vm, struct kvm_vcpu *vcpu,
			   struct kvm_memhook_regs *regs, ktime_t end)
{
	struct kmh_snap s = { .vcpu = vcpu, .regs = regs, .result = 1 };
	unsigned long flags;
	long ret;

	ret = mutex_lock_interruptible(&kmh_snap_mutex);
	if (ret)
		return ret;
	ret = kmh_probe_get(vm);
	if (ret)
		goto unlock;
	raw_spin_lock_irqsave(&kmh_snap_lock, flags);
	WRITE_ONCE(kmh_snap, &s);
	raw_spin_unlock_irqrestore(&kmh_snap_lock, flags);
	while ((ret = kmh_snap_result(&s)) > 0) {
		if (kmh_vm_gone(vm))
			ret = -ESRCH;
		else if (ktime_after(ktime_get(), end))
			ret = -ETIMEDOUT;
		else if (signal_pending(current))
			ret = -EINTR;
		if (ret < 0)
			break;
		kmh_kick(vm, false);
		usleep_range(900, 1100);
	}
	raw_spin_lock_irqsave(&kmh_snap_lock, flags);
	WRITE_ONCE(kmh_snap, NULL);
	raw_spin_unlock_irqrestore(&kmh_snap_lock, flags);
	kmh_probe_put(vm);
unlock:
	mutex_unlock(&kmh_snap_mutex);
	return ret;
}

/* One try; -EAGAIN when the vCPU executed meanwhile. */
static int kmh_regs_copy(struct kvm_vcpu *vcpu, struct kvm_memhook_regs *regs)
{
	u64 exits = READ_ONCE(vcpu->stat.exits);
	bool ok;

	smp_rmb();
	if (READ_ONCE(vcpu->mode) != OUTSIDE_GUEST_MODE)
		return -EAGAIN;
	ok = kmh_cpu->regs(vcpu, regs);
	smp_rmb();
	if (READ_ONCE(vcpu->mode) != OUTSIDE_GUEST_MODE || READ_ONCE(vcpu->stat.exits) != exits)
		return -EAGAIN;
	return ok ? 0 : -EOPNOTSUPP;
}

struct kmh_regs_call {
	struct kvm_vcpu *vcpu;
	struct kvm_memhook_regs *regs;
	int result;
};

/* On the vCPU's own CPU, which therefore does not execute the guest. */
static void kmh_regs_here(void *arg)
{
	struct kmh_regs_call *call = arg;

	if (READ_ONCE(call->vcpu->cpu) == smp_processor_id())
		call->result = kmh_regs_copy(call->vcpu, call->regs);
}

static long kmh_regs_now(struct kmh_vm *vm, struct kvm_vcpu *vcpu,
			 struct kvm_memhook_regs *regs, ktime_t end)
{
	struct kmh_regs_call call = { .vcpu = vcpu, .regs = regs };

	for (;;) {
		int cpu = READ_ONCE(vcpu->cpu);
		int err = kmh_regs_copy(vcpu, regs);

		if (err != -EAGAIN) {
			if (!err)
				regs->flags |= KVM_MEMHOOK_REGS_HALTED;
			return err;
		}
		call.result = -EAGAIN;
		if (cpu >= 0 && cpu_online(cpu))
			smp_call_function_single(cpu, kmh_regs_here, &call, 1);
		if (call.result != -EAGAIN)
			return call.result;
		if (kmh_vm_gone(vm))
			return -ESRCH;
		if (ktime_after(ktime_get(), end))
			return -ETIMEDOUT;
		if (signal_pending(current))
			return -EINTR;
		usleep_range(900, 1100);
	}
}

/* kmh_vcpu_regs() - GET_REGS */
long kmh_vcpu_regs(struct kmh_vm *vm, struct kvm_memhook_regs __user *uarg)
{
	struct kvm_memhook_regs regs;
	struct kvm_vcpu *vcpu;
	u32 index, timeout_ms;
	ktime_t end;
	long ret;

	if (copy_from_user(&regs, uarg, sizeof(regs)))
		return -EFAULT;
	index = regs.vcpu;
	timeout_ms = regs.timeout_ms;
	if (!timeout_ms || timeout_ms > 1000)
		return -EINVAL;
	if (index >= atomic_read(&vm->kvm->online_vcpus))
		return -ENOENT;
	vcpu = kvm_get_vcpu(vm->kvm, index);
	if (!vcpu)
		return -ENOENT;
	if (kmh_cpu_protected(vcpu))
		return -EOPNOTSUPP;
	memset(&regs, 0, sizeof(regs));
	end = ktime_add_ms(ktime_get(), timeout_ms);
	ret = kmh_cpu->anywhere ? kmh_regs_now(vm, vcpu, &regs, end) :
				  kmh_regs_probe(vm, vcpu, &regs, end);
	if (ret)
		return ret;
	regs.vcpu = index;
	regs.timeout_ms = timeout_ms;
	return copy_to_user(uarg, &regs, sizeof(regs)) ? -EFAULT : 0;
}
