/*
 * sleeper.c - a program that mostly sleeps, as one with a window does.
 */
#include "program.h"

volatile u32 wakes;

u32 WINAPI start(void *peb)
{
	(void)peb;
	for (;;) {
		wakes++;
		progress++;
		Sleep(100);
	}
}
