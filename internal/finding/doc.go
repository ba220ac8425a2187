// Package finding is the domain model: what a scan finds in a guest, what it could not
// read there, what was decided about a finding and what came of that. Its types carry the
// JSON that commands print and the history keeps.
//
// Only data is here. The package does no I/O, reads no guest and writes no report, so
// that every other package can import it. It imports verdict alone, whose decision a
// finding carries.
//
// Names, paths and other texts in it come from guests, which are hostile. Whoever prints
// one escapes it first (package escape).
package finding
