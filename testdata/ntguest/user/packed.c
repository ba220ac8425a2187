/*
 * packed.c - a program as a packer makes one: its code is not in the file as it runs.
 * At start it decodes what section UPX1 holds into section UPX0, which has no bytes in
 * the file, and calls it. The code carries a marker that the tests' signature looks
 * for, and that the file does not hold.
 */
#include "program.h"
#include "compute.h"

#define KEY "0x5a"

__asm__(".section UPX0,\"bwx\"\n.globl unpacked\nunpacked:\n.zero 0x3000\n"
	".section UPX1,\"wx\"\n.globl packed\npacked:\n"
	/* mov eax, 42; ret */
	".irp b, 0xb8, 0x2a, 0x00, 0x00, 0x00, 0xc3\n.byte \\b ^ " KEY "\n.endr\n"
	/* VMAV_TEST_UNPACKED */
	".irp b, 0x56, 0x4d, 0x41, 0x56, 0x5f, 0x54, 0x45, 0x53, 0x54, 0x5f, 0x55, 0x4e, 0x50, 0x41, 0x43, 0x4b, 0x45, 0x44\n"
	".byte \\b ^ " KEY "\n.endr\n"
	".globl packed_end\npacked_end:\n.text\n");

extern volatile unsigned char unpacked[], packed[], packed_end[];
volatile u32 rounds;

u32 WINAPI start(void *peb)
{
	u32 (*code)(void);
	u32 i, n = (u32)(packed_end - packed);

	(void)peb;
	/* On a second page, so that the first is one of zeros. */
	for (i = 0; i < n; i++)
		unpacked[0x1000 + i] = packed[i] ^ 0x5a;
	code = (u32 (*)(void))(void *)(unpacked + 0x1000);
	if (code() != 42)
		ExitProcess(0xdead0002);
	for (;;) {
		if (compute(400000, rounds & 0xff))
			ExitProcess(0xdead0001);
		if (++rounds % 2 == 0)
			Sleep(20);
	}
}
