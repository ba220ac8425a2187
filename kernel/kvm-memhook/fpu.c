// SPDX-License-Identifier: GPL-2.0-only
/*
 * The guest's x87, SSE and AVX registers. When the probe runs, KVM has loaded
 * them and not yet entered, so they are this CPU's. They are saved in the
 * standard form of XSAVE (SDM volume 1, chapter 13). Of the components that XCR0
 * may enable those are taken that a context switch between threads concerns and
 * that fit: not PKRU, which KVM handles apart, and not AMX's tiles, which are far
 * larger and which no system call leaves in use.
 */
#include <linux/kvm_host.h>

#include "kmh.h"

#define KMH_XMASK 0xe7ULL /* x87, SSE, AVX, AVX-512 */
#define KMH_XHEADER 512	/* bytes before the header, whose first word is XSTATE_BV */

static bool kmh_has_xsave;

/* End of component i in an area of the standard form, in bytes (CPUID leaf 0Dh). */
static u64 kmh_component_end(u32 i)
{
	u32 size = 0xd, offset, ecx = i, edx;

	asm volatile("cpuid" : "+a" (size), "=b" (offset), "+c" (ecx), "=d" (edx));
	return (u64)size + offset;
}

int kmh_fpu_init(void)
{
	u32 i;

	kmh_has_xsave = boot_cpu_has(X86_FEATURE_OSXSAVE);
	for (i = 2; kmh_has_xsave && i < 8; i++)
		if (KMH_XMASK & BIT_ULL(i) && kmh_component_end(i) > KMH_FPU_BYTES)
			return -EOPNOTSUPP;
	return 0;
}

static u64 kmh_xcr0(void)
{
	u32 lo, hi;

	asm volatile("xgetbv" : "=a" (lo), "=d" (hi) : "c" (0));
	return lo | (u64)hi << 32;
}

/*
 * kmh_fpu_live() - are the guest's registers in this CPU?
 *
 * Until 5.11 the tracepoint comes before KVM has loaded them again where the host
 * has used the FPU in between. The next entry will do then.
 */
bool kmh_fpu_live(void)
{
	return !test_thread_flag(TIF_NEED_FPU_LOAD);
}

/* kmh_fpu_save() - to area, KMH_FPU_BYTES of zeros on a boundary of 64 */
void kmh_fpu_save(void *area)
{
	if (kmh_has_xsave) {
		u32 mask = kmh_xcr0() & KMH_XMASK;

		asm volatile("xsave64 (%0)" : : "r" (area), "a" (mask), "d" (0) : "memory");
	} else {
		asm volatile("fxsave64 (%0)" : : "r" (area) : "memory");
	}
}

/*
 * kmh_fpu_restore() - what kmh_fpu_save() saved
 *
 * False, with nothing changed, when components that are in the area cannot be
 * loaded now.
 */
bool kmh_fpu_restore(void *area)
{
	if (kmh_has_xsave) {
		u64 xcr0 = kmh_xcr0(), have = *(u64 *)(area + KMH_XHEADER);
		u32 mask = xcr0 & KMH_XMASK;

		if (have & ~xcr0)
			return false;
		asm volatile("xrstor64 (%0)" : : "r" (area), "a" (mask), "d" (0) : "memory");
	} else {
		asm volatile("fxrstor64 (%0)" : : "r" (area) : "memory");
	}
	return true;
}
