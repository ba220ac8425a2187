/*
 * faulter.c - page faults of every kind, again and again: demand-zero pages,
 * pages of its own file, copy-on-write of its data, changes of protection, and
 * soft faults after it has given up its working set. What it reads is checked.
 */
#include "program.h"

#define PAGES 48
#define PAGE 4096

__attribute__((used, section(".rdata"))) static const u8 file_pages[12 * PAGE] = { [0] = 0x5a, [5 * PAGE + 7] = 0xa5, [12 * PAGE - 1] = 0x77 };
static u8 data_pages[8 * PAGE] = { 1, 2, 3 };
volatile u32 rounds;

static void fail(u32 what)
{
	ExitProcess(0xdead0100 + what);
}

static u32 file_sum(void)
{
	u32 sum = 0;
	for (u32 i = 0; i < sizeof file_pages; i++)
		sum += ((volatile const u8 *)file_pages)[i];
	return sum;
}

u32 WINAPI start(void *peb)
{
	(void)peb;
	for (;;) {
		volatile u8 *m = VirtualAlloc(0, PAGES * PAGE, MEM_COMMIT_RESERVE, PAGE_READWRITE);
		u32 old;
		if (!m)
			fail(1);
		for (u32 i = 0; i < PAGES; i++) {
			if (m[i * PAGE + 9])
				fail(2);
			m[i * PAGE + 9] = (u8)(rounds + i);
		}
		for (u32 i = 0; i < 8; i++)
			((volatile u8 *)data_pages)[i * PAGE + 100] = (u8)(rounds + i);
		if (!SetProcessWorkingSetSize(NT_CURRENT_PROCESS, -1, -1))
			fail(3);
		for (u32 i = 0; i < PAGES; i++)
			if (m[i * PAGE + 9] != (u8)(rounds + i))
				fail(4);
		for (u32 i = 0; i < 8; i++)
			if (((volatile u8 *)data_pages)[i * PAGE + 100] != (u8)(rounds + i))
				fail(5);
		if (file_sum() != 0x5a + 0xa5 + 0x77)
			fail(6);
		if (!VirtualProtect((void *)m, 4 * PAGE, PAGE_READONLY, &old) || old != PAGE_READWRITE)
			fail(7);
		if (!VirtualProtect((void *)m, PAGE, PAGE_NOACCESS, &old) || old != PAGE_READONLY)
			fail(8);
		if (!VirtualProtect((void *)m, 4 * PAGE, PAGE_READWRITE, &old) || old != PAGE_NOACCESS)
			fail(9);
		m[0] = 1;
		if (!VirtualFree((void *)m, 0, MEM_RELEASE))
			fail(10);
		rounds++;
		progress++;
		if (rounds % 4 == 0)
			Sleep(30);
	}
}
