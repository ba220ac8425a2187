/* SPDX-License-Identifier: Apache-2.0
 * Exports data, which a program that uses it without declaring it imported is
 * relocated for at run time, by its own start code. */
__declspec(dllexport) int probe_array[64] = { 1, 2, 3 };
