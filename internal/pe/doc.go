// Package pe turns a PE image as it lies in memory back into the file it was
// loaded from, and says exactly how far that succeeded.
//
// It owns everything that is known about the PE format: the headers and what the
// Windows loader does to an image (relocations, import binding, load-config
// fields), the way back to the on-disk form, the fidelity record that travels
// with a rebuilt file, and the hashes that name it.
//
// The package is pure: it reads no files, no guest and no clock, and imports no
// other package of the project. Its input is a copy of hostile memory: every
// size, offset and count in it is a claim to be checked against the bytes that
// are there. Malformed input yields an error or a fidelity record that says what
// could not be done, never a panic and never unbounded work.
//
// # Where bytes come from
//
// Of several sources of the same byte of a file the first that has it counts:
//
//  1. for what a process may write to (writable sections, headers that it has
//     changed) and for what is never mapped: the section's own page under the
//     process's copy ([Image].Shared), then the file's own cached page
//     ([Options].FilePages), then the copy as it is now;
//  2. for everything else the page of the mapping, resident, in transition, by its
//     prototype entry, or read in by the guest when it was asked to ([PagedIn]), with what
//     the loader did to it undone: it is what runs, and
//     where it differs from the section's page or from the cached file the difference
//     is a [Conflict], not a correction;
//  3. the cached page, for what the mapping does not have;
//  4. another process's own copy, for what cannot be written to ([OtherProcess]);
//  5. other parts of the image that say what the byte was (import names for the
//     address table);
//  6. zeros, recorded as a [Gap].
//
// Headers are parsed from the same sources in the same order, and made up from the
// section object's layout or by analysis where none serves.
//
// Format facts come from Microsoft's "PE Format" specification and from winnt.h
// of the Windows SDK (structure offsets); what the loader does was checked
// against images mapped by Wine and by Windows' documented behaviour, and is
// cited where it is used.
package pe
