/* SPDX-License-Identifier: Apache-2.0
 * Loads the DLLs it is given, says so and waits, so that a test can read the
 * images that a real loader has mapped. */
#include <windows.h>
#include <stdio.h>

extern int probe_array[];
static int *const inside = &probe_array[7];

int main(int argc, char **argv)
{
	int i;

	for (i = 1; i < argc; i++)
		if (!LoadLibraryA(argv[i]))
			printf("missing %s\n", argv[i]);
	if (*inside != 0 || probe_array[2] != 3)
		printf("probe %d\n", probe_array[2]);
	printf("ready\n");
	fflush(stdout);
	Sleep(INFINITE);
	return 0;
}
