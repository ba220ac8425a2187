// SPDX-License-Identifier: GPL-2.0-only
/*
 * vCPU state under Intel VMX (SDM volume 3C, chapters 25 to 28, appendix B). The
 * control structure is reached by VMREAD and VMWRITE of the current one, which
 * in the probe is the vCPU's. Not run by us yet.
 */
#include <linux/kvm_host.h>

#include <asm/msr.h>
#include <asm/vmx.h>

#include "kmh.h"

/* Access rights in the control structure's form (SDM 3C, table 25-2). */
#define KMH_AR_L	BIT(13)
#define KMH_AR_CODE64	0xa0fb	/* G, L, P, DPL 3, S, type 11 */

/* False where there is no current control structure of the usual form. */
static bool kmh_vmread(unsigned long field, u64 *value)
{
	unsigned long v;
	bool ok;

	asm volatile("vmread %[field], %[v]"
		     : [v] "=rm" (v), "=@cca" (ok) : [field] "r" (field));
	*value = ok ? v : 0;
	return ok;
}

static bool kmh_vmwrite(unsigned long field, u64 value)
{
	bool ok;

	asm volatile("vmwrite %[v], %[field]"
		     : "=@cca" (ok) : [v] "rm" ((unsigned long)value), [field] "r" (field));
	return ok;
}

static bool kmh_vmx_usable(const struct kvm_vcpu *vcpu)
{
	u64 primary, secondary;

	if (kmh_cpu_protected(vcpu))
		return false;
	/* Without EPT CR3 is KVM's, not the guest's. */
	return kmh_vmread(CPU_BASED_VM_EXEC_CONTROL, &primary) &&
	       primary & CPU_BASED_ACTIVATE_SECONDARY_CONTROLS &&
	       kmh_vmread(SECONDARY_VM_EXEC_CONTROL, &secondary) &&
	       secondary & SECONDARY_EXEC_ENABLE_EPT;
}

static bool kmh_vmx_state(struct kvm_vcpu *vcpu, struct kmh_state *st)
{
	u64 cr0, cr3, cr4, cs, cs_ar, ss_ar, base, rip, rflags, event, blocked;

	if (!kmh_vmx_usable(vcpu) ||
	    !kmh_vmread(GUEST_CR0, &cr0) || !kmh_vmread(GUEST_CR3, &cr3) ||
	    !kmh_vmread(GUEST_CR4, &cr4) ||
	    !kmh_vmread(GUEST_CS_SELECTOR, &cs) || !kmh_vmread(GUEST_CS_AR_BYTES, &cs_ar) ||
	    !kmh_vmread(GUEST_SS_AR_BYTES, &ss_ar) || !kmh_vmread(GUEST_RIP, &rip) ||
	    !kmh_vmread(GUEST_RFLAGS, &rflags) || !kmh_vmread(VM_ENTRY_INTR_INFO_FIELD, &event) ||
	    !kmh_vmread(GUEST_INTERRUPTIBILITY_INFO, &blocked))
		return false;
	/* Its writes are intercepted: KVM's copy is the guest's, the field need not be there. */
	st->efer = vcpu->arch.efer;
	st->cs = cs;
	st->code64 = st->efer & EFER_LMA && cs_ar & KMH_AR_L;
	kmh_cpu_paging(st, cr3, cr4);
	if (!kmh_vmread(st->efer & EFER_LMA ? GUEST_GS_BASE : GUEST_FS_BASE, &base))
		return false;
	st->teb = base;
	st->rip = rip;
	st->rflags = rflags;
	st->cpl = ss_ar >> 5 & 3;
	st->calm = st->cpl == 3 &&
		   (cr0 & (X86_CR0_PE | X86_CR0_PG | X86_CR0_TS)) == (X86_CR0_PE | X86_CR0_PG) &&
		   !(event & INTR_INFO_VALID_MASK) &&
		   !(blocked & (GUEST_INTR_STATE_STI | GUEST_INTR_STATE_MOV_SS)) &&
		   !kmh_cpu_nested(vcpu) && !vcpu->guest_debug &&
		   !(rflags & (X86_EFLAGS_TF | X86_EFLAGS_VM));
	return true;
}

static bool kmh_seg(struct kvm_memhook_segment *to, unsigned int index)
{
	u64 selector, limit, ar, base;

	/* The fields of the segment registers follow each other in the order ES to TR. */
	if (!kmh_vmread(GUEST_ES_SELECTOR + 2 * index, &selector) ||
	    !kmh_vmread(GUEST_ES_LIMIT + 2 * index, &limit) ||
	    !kmh_vmread(GUEST_ES_AR_BYTES + 2 * index, &ar) ||
	    !kmh_vmread(GUEST_ES_BASE + 2 * index, &base))
		return false;
	to->selector = selector;
	to->limit = limit;
	to->base = base;
	to->attrib = (ar & 0xff) | (ar >> 4 & 0xf00);
	return true;
}

/* 0 where there is no such register. */
static u64 kmh_msr(u32 index)
{
	u32 lo = 0, hi = 0;

	return rdmsr_safe(index, &lo, &hi) ? 0 : lo | (u64)hi << 32;
}

static bool kmh_vmx_regs(struct kvm_vcpu *vcpu, struct kvm_memhook_regs *r)
{
	struct kmh_state st;
	u64 limit;
	int i;

	if (!kmh_vmx_state(vcpu, &st))
		return false;
	for (i = 0; i < 16; i++)
		r->gpr[i] = vcpu->arch.regs[i];
	if (!kmh_vmread(GUEST_RSP, &r->gpr[VCPU_REGS_RSP]) ||
	    !kmh_vmread(GUEST_CR0, &r->cr0) || !kmh_vmread(GUEST_CR3, &r->cr3) ||
	    !kmh_vmread(GUEST_CR4, &r->cr4) || !kmh_vmread(GUEST_SYSENTER_EIP, &r->sysenter_eip) ||
	    !kmh_seg(&r->cs, 1) || !kmh_seg(&r->ss, 2) || !kmh_seg(&r->fs, 4) ||
	    !kmh_seg(&r->gs, 5) || !kmh_seg(&r->tr, 7) ||
	    !kmh_vmread(GUEST_GDTR_BASE, &r->gdt.base) || !kmh_vmread(GUEST_IDTR_BASE, &r->idt.base) ||
	    !kmh_vmread(GUEST_GDTR_LIMIT, &limit))
		return false;
	r->gdt.limit = limit;
	if (!kmh_vmread(GUEST_IDTR_LIMIT, &limit))
		return false;
	r->idt.limit = limit;
	r->flags = kmh_cpu_nested(vcpu) ? KVM_MEMHOOK_REGS_NESTED : 0;
	r->cpl = st.cpl;
	r->rip = st.rip;
	r->rflags = st.rflags;
	r->cr2 = vcpu->arch.cr2;
	r->efer = st.efer;
	/* In the probe these registers of the processor hold the guest's values. */
	r->kernel_gs_base = kmh_msr(MSR_KERNEL_GS_BASE);
	if (st.efer & EFER_SCE) {
		r->star = kmh_msr(MSR_STAR);
		r->lstar = kmh_msr(MSR_LSTAR);
	}
	return true;
}

/*
 * RIP and RSP are written to the control structure and to KVM's copies: KVM
 * writes its copy of one that is marked as changed, then or before.
 */
static void kmh_vmx_set(struct kvm_vcpu *vcpu, const struct kmh_set *set)
{
	int i;

	for (i = 0; i < 16; i++)
		if (set->mask & BIT(i))
			vcpu->arch.regs[i] = set->gpr[i];
	if (set->mask & BIT(VCPU_REGS_RSP))
		kmh_vmwrite(GUEST_RSP, set->gpr[VCPU_REGS_RSP]);
	if (set->mask & KVM_MEMHOOK_SET_RIP) {
		kmh_cpu_set_rip(vcpu, set->rip);
		kmh_vmwrite(GUEST_RIP, set->rip);
	}
	if (set->mask & KVM_MEMHOOK_SET_RFLAGS)
		kmh_vmwrite(GUEST_RFLAGS, set->rflags);
	if (set->mask & KVM_MEMHOOK_SET_CODE64) {
		kmh_vmwrite(GUEST_CS_SELECTOR, set->cs);
		kmh_vmwrite(GUEST_CS_BASE, 0);
		kmh_vmwrite(GUEST_CS_LIMIT, ~0U);
		kmh_vmwrite(GUEST_CS_AR_BYTES, KMH_AR_CODE64);
	}
}

static void kmh_vmx_page_fault(struct kvm_vcpu *vcpu, u64 address, u32 error_code)
{
	vcpu->arch.cr2 = address;
	kmh_vmwrite(VM_ENTRY_EXCEPTION_ERROR_CODE, error_code);
	kmh_vmwrite(VM_ENTRY_INTR_INFO_FIELD, PF_VECTOR | INTR_TYPE_HARD_EXCEPTION |
					      INTR_INFO_DELIVER_CODE_MASK | INTR_INFO_VALID_MASK);
}

const struct kmh_cpu_ops kmh_vmx_ops = {
	.vendor = KVM_MEMHOOK_VENDOR_INTEL,
	.state = kmh_vmx_state,
	.regs = kmh_vmx_regs,
	.set = kmh_vmx_set,
	.page_fault = kmh_vmx_page_fault,
};
