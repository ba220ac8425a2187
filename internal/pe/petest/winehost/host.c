/* SPDX-License-Identifier: Apache-2.0
 * Loads the DLLs it is given, says so and waits, so that a test can read the
 * images that a real loader has mapped. After -still DLLs are mapped and relocated,
 * and neither bound nor started: no code of theirs runs. */
#include <windows.h>
#include <stdio.h>
#include <string.h>

extern int probe_array[];
static int *const inside = &probe_array[7];

int main(int argc, char **argv)
{
	DWORD flags = 0;
	int i;

	for (i = 1; i < argc; i++) {
		if (!strcmp(argv[i], "-still"))
			flags = DONT_RESOLVE_DLL_REFERENCES;
		else if (!LoadLibraryExA(argv[i], NULL, flags))
			printf("missing %s\n", argv[i]);
	}
	if (*inside != 0 || probe_array[2] != 3)
		printf("probe %d\n", probe_array[2]);
	printf("ready\n");
	fflush(stdout);
	Sleep(INFINITE);
	return 0;
}
