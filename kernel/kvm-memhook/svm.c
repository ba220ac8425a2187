// SPDX-License-Identifier: GPL-2.0-only
/*
 * vCPU state under AMD SVM (AMD64 Architecture Programmer's Manual, volume 2,
 * chapter 15 and appendix B). KVM keeps a vCPU's control block in memory; the
 * pointer to it follows struct kvm_vcpu in its struct vcpu_svm.
 */
#include <linux/kvm_host.h>

#include <asm/svm.h>

#include "kmh.h"

/* Bits of vmcb_control_area.clean: what the processor may have cached. */
#define KMH_CLEAN_SEG	BIT(8)
#define KMH_CLEAN_CR2	BIT(9)

/* Attributes of flat 64-bit user code in the control block's form: G, L, P, DPL 3, S, type 11. */
#define KMH_CODE64	0xafb

/*
 * The control block, or NULL where what is there does not look like one: KVM
 * always has EFER.SVME set in a guest's.
 */
static struct vmcb *kmh_vmcb(const struct kvm_vcpu *vcpu)
{
	struct vmcb *vmcb = READ_ONCE(*(struct vmcb **)(vcpu + 1));

	if (kmh_cpu_protected(vcpu) || !PAGE_ALIGNED(vmcb) || !virt_addr_valid(vmcb))
		return NULL;
	/* Without nested paging CR3 is KVM's, not the guest's, once the guest has been entered. */
	if (!(vmcb->save.efer & EFER_SVME) || (!vmcb->control.nested_cr3 && vcpu->stat.exits))
		return NULL;
	return vmcb;
}

/* CR3: in the control block from the first entry on, and in KVM's own copy before. */
static u64 kmh_cr3(const struct kvm_vcpu *vcpu, const struct vmcb *vmcb)
{
	return vmcb->control.nested_cr3 ? vmcb->save.cr3 : vcpu->arch.cr3;
}

static bool kmh_svm_state(struct kvm_vcpu *vcpu, struct kmh_state *st)
{
	const struct vmcb *vmcb = kmh_vmcb(vcpu);
	const struct vmcb_save_area *s;

	if (!vmcb)
		return false;
	s = &vmcb->save;
	st->efer = s->efer & ~EFER_SVME;
	st->cs = s->cs.selector;
	st->code64 = st->efer & EFER_LMA && s->cs.attrib & SVM_SELECTOR_L_MASK;
	kmh_cpu_paging(st, kmh_cr3(vcpu, vmcb), s->cr4);
	st->rip = kmh_cpu_rip(vcpu);
	st->rflags = s->rflags;
	st->cpl = s->cpl;
	st->teb = st->efer & EFER_LMA ? s->gs.base : s->fs.base;
	st->calm = s->cpl == 3 && (s->cr0 & (X86_CR0_PE | X86_CR0_PG | X86_CR0_TS)) == (X86_CR0_PE | X86_CR0_PG) &&
		   !(vmcb->control.event_inj & SVM_EVTINJ_VALID) &&
		   !(vmcb->control.int_state & SVM_INTERRUPT_SHADOW_MASK) &&
		   !kmh_cpu_nested(vcpu) && !vcpu->guest_debug &&
		   !(s->rflags & (X86_EFLAGS_TF | X86_EFLAGS_VM));
	return true;
}

static void kmh_seg(struct kvm_memhook_segment *to, const struct vmcb_seg *from)
{
	to->base = from->base;
	to->limit = from->limit;
	to->selector = from->selector;
	to->attrib = from->attrib;
}

static bool kmh_svm_regs(struct kvm_vcpu *vcpu, struct kvm_memhook_regs *r)
{
	const struct vmcb *vmcb = kmh_vmcb(vcpu);
	const struct vmcb_save_area *s;
	int i;

	if (!vmcb)
		return false;
	s = &vmcb->save;
	for (i = 0; i < 16; i++)
		r->gpr[i] = vcpu->arch.regs[i];
	r->flags = kmh_cpu_nested(vcpu) ? KVM_MEMHOOK_REGS_NESTED : 0;
	r->cpl = s->cpl;
	r->rip = kmh_cpu_rip(vcpu);
	r->rflags = s->rflags;
	r->cr0 = s->cr0;
	r->cr2 = vcpu->arch.cr2;
	r->cr3 = kmh_cr3(vcpu, vmcb);
	r->cr4 = vcpu->arch.cr4; /* writes are intercepted, and the control block has bits of KVM's own */
	r->efer = s->efer & ~EFER_SVME;
	r->star = s->star;
	r->lstar = s->lstar;
	r->cstar = s->cstar;
	r->kernel_gs_base = s->kernel_gs_base;
	r->sysenter_eip = s->sysenter_eip;
	kmh_seg(&r->cs, &s->cs);
	kmh_seg(&r->ss, &s->ss);
	kmh_seg(&r->fs, &s->fs);
	kmh_seg(&r->gs, &s->gs);
	kmh_seg(&r->tr, &s->tr);
	r->gdt.base = s->gdtr.base;
	r->gdt.limit = s->gdtr.limit;
	r->idt.base = s->idtr.base;
	r->idt.limit = s->idtr.limit;
	return true;
}

/*
 * KVM copies RAX, RSP and RIP from its registers into the control block when it
 * is about to enter; both are written, so that it does not matter when.
 */
static void kmh_svm_set(struct kvm_vcpu *vcpu, const struct kmh_set *set)
{
	struct vmcb *vmcb = kmh_vmcb(vcpu);
	int i;

	if (!vmcb)
		return;
	for (i = 0; i < 16; i++)
		if (set->mask & BIT(i))
			vcpu->arch.regs[i] = set->gpr[i];
	vmcb->save.rax = vcpu->arch.regs[VCPU_REGS_RAX];
	vmcb->save.rsp = vcpu->arch.regs[VCPU_REGS_RSP];
	if (set->mask & KVM_MEMHOOK_SET_RIP) {
		kmh_cpu_set_rip(vcpu, set->rip);
		vmcb->save.rip = set->rip;
	}
	if (set->mask & KVM_MEMHOOK_SET_RFLAGS)
		vmcb->save.rflags = set->rflags;
	if (set->mask & KVM_MEMHOOK_SET_CODE64) {
		vmcb->save.cs = (struct vmcb_seg){ .selector = set->cs, .attrib = KMH_CODE64, .limit = ~0U };
		vmcb->control.clean &= ~KMH_CLEAN_SEG;
	}
}

static void kmh_svm_page_fault(struct kvm_vcpu *vcpu, u64 address, u32 error_code)
{
	struct vmcb *vmcb = kmh_vmcb(vcpu);

	if (!vmcb)
		return;
	vcpu->arch.cr2 = address;
	vmcb->save.cr2 = address;
	vmcb->control.clean &= ~KMH_CLEAN_CR2;
	vmcb->control.event_inj = PF_VECTOR | SVM_EVTINJ_TYPE_EXEPT | SVM_EVTINJ_VALID | SVM_EVTINJ_VALID_ERR;
	vmcb->control.event_inj_err = error_code;
}

const struct kmh_cpu_ops kmh_svm_ops = {
	.vendor = KVM_MEMHOOK_VENDOR_AMD,
	.anywhere = true,
	.state = kmh_svm_state,
	.regs = kmh_svm_regs,
	.set = kmh_svm_set,
	.page_fault = kmh_svm_page_fault,
};
