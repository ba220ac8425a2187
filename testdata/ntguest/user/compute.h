/*
 * compute.h - work that notices when a register is not given back: values live
 * in SSE and general registers over many instructions, and the sum is known.
 */
#ifndef COMPUTE_H
#define COMPUTE_H
#include "nt.h"

/* Returns 0, or 1 when registers changed under it. Counts in progress (program.h). */
static int compute(u32 rounds, u32 seed)
{
	double x = seed, one = 1.0;
	u32 a = seed, n = rounds;

	__asm__ volatile(
		"1:	addsd %[one], %[x]\n"
		"	addl $3, %[a]\n"
		"	incl %[progress]\n"
		"	subl $1, %[n]\n"
		"	jnz 1b\n"
		: [x] "+x"(x), [a] "+r"(a), [n] "+r"(n), [progress] "+m"(progress) : [one] "x"(one) : "cc");
	return a != seed + 3 * rounds || x != (double)seed + rounds;
}

#endif
