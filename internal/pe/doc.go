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
//  1. the file's own cached page ([Options].FilePages), for headers' ImageBase,
//     writable sections, and what was never mapped;
//  2. the page of the mapping itself, with what the loader did to it undone, for
//     everything that is not writable: it is what runs, and where it differs from
//     the cached page the difference is a [Conflict], not a correction;
//  3. the cached page, for what the mapping does not have;
//  4. other parts of the image that say what the byte was (import names for the
//     address table);
//  5. zeros, recorded as a [Gap].
//
// [Merge] completes a mapping from others of the same file beforehand; it takes
// no page that the other process has written.
//
// Format facts come from Microsoft's "PE Format" specification and from winnt.h
// of the Windows SDK (structure offsets); what the loader does was checked
// against images mapped by Wine and by Windows' documented behaviour, and is
// cited where it is used.
package pe
