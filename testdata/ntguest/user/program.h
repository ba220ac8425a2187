/*
 * program.h - what every program has: its name, a version record of its own
 * (so that no two files are alike) and the entry point's type. PROGRAM is the
 * file name, from the compiler's command line.
 */
#ifndef PROGRAM_H
#define PROGRAM_H
#include "nt.h"

#ifndef PROGRAM
#error "PROGRAM is not defined"
#endif

__attribute__((used, section(".rdata"))) static const char program_record[] =
	"NT test guest program " PROGRAM ", written for the project's own tests";

/* A pointer, so that every program has something to relocate. */
__attribute__((used)) static const char *volatile program_record_at = program_record;

/* Counts on while the program executes instructions of its own; exported, so that
   a test can find it in any process and read it from outside. */
EXPORT volatile u32 progress;

u32 WINAPI start(void *peb);

#endif
