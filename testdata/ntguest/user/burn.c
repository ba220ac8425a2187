/*
 * burn.c - computes all the time and checks its registers, never entering the
 * kernel but by the timer.
 */
#include "program.h"
#include "compute.h"

volatile u32 rounds;

u32 WINAPI start(void *peb)
{
	(void)peb;
	for (;;) {
		if (compute(500000, rounds & 0xffff))
			ExitProcess(0xdead0001);
		rounds++;
	}
}
