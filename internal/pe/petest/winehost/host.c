/* SPDX-License-Identifier: Apache-2.0
 * Loads the DLLs it is given, says so and waits, so that a test can read the
 * images that a real loader has mapped. */
#include <windows.h>
#include <stdio.h>

int main(int argc, char **argv)
{
	int i;

	for (i = 1; i < argc; i++)
		if (!LoadLibraryA(argv[i]))
			printf("missing %s\n", argv[i]);
	printf("ready\n");
	fflush(stdout);
	Sleep(INFINITE);
	return 0;
}
