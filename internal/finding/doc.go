// Package finding is the domain model. It says what a scan finds in a guest, what it could
// not read there, what was decided about a finding, and what came of that. The types carry
// the JSON that commands print and that the history keeps.
//
// The package holds data only. It does no I/O, reads no guest and writes no report, so that
// every other package can import it. It imports only package verdict, because a finding
// carries its verdict.
//
// Names, paths and other texts come from guests, which are hostile. Code that prints such a
// text escapes it first (package escape).
package finding
