#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-only
# Writes a header that says what this kernel offers. Each probe is a few lines
# of C that compile with the kernel's own flags, or do not; a distribution that
# carries a change back to an older version is then as good as the newer one.
#
#   probe.sh OUTPUT CC FLAGS...
set -eu
out=$1
shift
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

compiles() { "$@" -Wno-unused -fsyntax-only -x c "$tmp/probe.c" >"$tmp/log" 2>&1; }

# A snippet that must compile shows that the probes themselves work: otherwise a
# missing header would pass for a missing feature.
cat >"$tmp/probe.c" <<'C'
#include <linux/kvm_host.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <asm/svm.h>
C
if ! compiles "$@"; then
	echo "probe.sh: the headers of this kernel do not compile:" >&2
	head -n 20 "$tmp/log" >&2
	exit 1
fi

echo "/* Made by compat/probe.sh. */" >"$tmp/config"
probe() {
	name=$1
	shift
	cat >"$tmp/probe.c"
	if compiles "$@"; then
		echo "#define $name 1"
	else
		echo "/* $name: no */"
	fi >>"$tmp/config"
}

# The page array argument followed by a VMA array (until 6.5).
probe KMH_GUP_HAS_VMAS "$@" <<'C'
#include <linux/mm.h>
long p(struct mm_struct *mm, struct page **pages);
long p(struct mm_struct *mm, struct page **pages)
{ return get_user_pages_remote(mm, 0, 1, 0, pages, NULL, NULL); }
C
probe KMH_HAS_FOLL_NOFAULT "$@" <<'C'
#include <linux/mm.h>
int p(void);
int p(void) { return FOLL_NOFAULT; }
C
probe KMH_HAS_VM_FLAGS_MOD "$@" <<'C'
#include <linux/mm.h>
void p(struct vm_area_struct *vma);
void p(struct vm_area_struct *vma) { vm_flags_mod(vma, VM_IO, VM_MAYWRITE); }
C
# RIP in a field of its own rather than among the registers.
probe KMH_HAS_ARCH_RIP "$@" <<'C'
#include <linux/kvm_host.h>
unsigned long p(struct kvm_vcpu *v);
unsigned long p(struct kvm_vcpu *v) { return v->arch.rip; }
C
# Register dirty bits as a bitmap rather than a word.
probe KMH_HAS_REGS_BITMAP "$@" <<'C'
#include <linux/kvm_host.h>
void p(struct kvm_vcpu *v);
void p(struct kvm_vcpu *v) { __set_bit(0, v->arch.regs_dirty); }
C
probe KMH_HAS_VCPU_ARRAY "$@" <<'C'
#include <linux/kvm_host.h>
void *p(struct kvm *k);
void *p(struct kvm *k) { return xa_load(&k->vcpu_array, 0); }
C
# SEV-ES and TDX guests, whose registers the host cannot read.
probe KMH_HAS_STATE_PROTECTED "$@" <<'C'
#include <linux/kvm_host.h>
bool p(struct kvm_vcpu *v);
bool p(struct kvm_vcpu *v) { return v->arch.guest_state_protected; }
C
# Memory slots as a tree by guest frame rather than an array.
probe KMH_HAS_SLOT_TREE "$@" <<'C'
#include <linux/kvm_host.h>
void *p(struct kvm_memslots *s);
void *p(struct kvm_memslots *s) { return s->gfn_tree.rb_node; }
C
probe KMH_HAS_GUEST_MEMFD "$@" <<'C'
#include <linux/kvm_host.h>
int p(void);
int p(void) { return KVM_MEM_GUEST_MEMFD; }
C
probe KMH_HAS_KMAP_LOCAL "$@" <<'C'
#include <linux/highmem.h>
void *p(struct page *pg);
void *p(struct page *pg) { return kmap_local_page(pg); }
C

mv "$tmp/config" "$out"
