// Package pe turns a PE image as it is in memory back into the file that it was loaded
// from, and records exactly how far that succeeded.
//
// It owns all knowledge of the PE format: the headers, what the Windows loader does to an
// image (relocations, import binding, load-config fields), the way back to the on-disk
// form, the fidelity record that goes with a rebuilt file, and the hashes that identify it.
//
// The package is pure: it reads no files, no guest and no clock, and imports no other
// package of the project. Its input is a copy of hostile memory: every size, offset and
// count in it is a claim that is checked against the bytes. Malformed input gives an error,
// or a fidelity record that says what could not be done, but never a panic and never
// unbounded work.
//
// # Where bytes come from
//
// If several sources have the same byte of a file, the first in this order counts:
//
//  1. for what a process may write to (writable sections, headers that it has changed) and
//     for what is never mapped: the section's own page under the process's private copy
//     ([Image].Shared), then the file's own cached page ([Options].FilePages), then the
//     private copy as it is now;
//  2. for everything else the page of the mapping: resident, in transition, through its
//     prototype entry, or read in by the guest on request ([PagedIn]). What the loader did
//     to it is undone. This page is what runs, so where it differs from the section's page
//     or from the cached file, the difference is recorded as a [Conflict] and not corrected;
//  3. the cached page, for what the mapping does not have;
//  4. another process's private copy, for what cannot be written to ([OtherProcess]);
//  5. other parts of the image from which the byte follows (import names, for the address
//     table);
//  6. zeros, recorded as a [Gap].
//
// Headers are parsed from the same sources in the same order. If none serves, they are made
// up from the section object's layout or by analysis.
//
// Facts about the format come from Microsoft's "PE Format" specification and from winnt.h
// of the Windows SDK (structure offsets). What the loader does was checked against images
// mapped by Wine and against Windows' documented behaviour, which is cited where it is used.
package pe
