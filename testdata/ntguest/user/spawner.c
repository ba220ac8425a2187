/*
 * spawner.c - starts short-lived programs, one after another, as an installer or
 * a shell would. It waits for some and lets others go.
 */
#include "program.h"

static const u16 names[][16] = {
	u"worker.exe", u"notify.exe", u"update.exe",
};
volatile u32 started, failed;

u32 WINAPI start(void *peb)
{
	u32 turn = 0;
	(void)peb;
	for (;;) {
		handle h = StartProgram(names[turn++ % 3]);
		if (h) {
			started++;
			if (turn % 2)
				WaitForSingleObject(h, 5000);
			CloseHandle(h);
		} else {
			failed++;
		}
		Sleep(700);
	}
}
