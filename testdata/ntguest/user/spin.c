/*
 * spin.c - computes in bursts with short pauses and checks its registers. A wrong
 * one ends it with a status that tests look for. (burn.c does not pause.)
 */
#include "program.h"
#include "compute.h"

volatile u32 rounds;

u32 WINAPI start(void *peb)
{
	(void)peb;
	for (;;) {
		if (compute(300000, rounds & 0xffff))
			ExitProcess(0xdead0001);
		rounds++;
		Sleep(20);
		if (rounds % 64 == 0)
			SwitchToThread();
	}
}
