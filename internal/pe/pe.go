// Package pe turns a PE image as it lies in memory back into the file it was
// loaded from, and says exactly how far that succeeded.
//
// The package is pure: it reads no files, no guest and no clock, and imports no
// other package of the project. Its input is a copy of hostile memory: every
// size, offset and count in it is a claim to be checked against the bytes that
// are there. Malformed input yields an error or a fidelity record that says what
// could not be done, never a panic and never unbounded work.
package pe

// PageSize is the granule of presence in an Image, in bytes.
const PageSize = 4096

// Origin says where the bytes of one page of an Image came from.
type Origin uint8

// Origins of a page, in ascending order of nothing in particular.
const (
	Absent     Origin = iota // not present anywhere the source could look; the bytes are zeros and mean nothing
	Resident                 // through a valid page table entry of the process
	Transition               // through a transition entry: trimmed from the working set, still in RAM
	Prototype                // through the section object's prototype page table entry
	DemandZero               // never touched: the guest would see zeros
)

// Image is one mapped PE image, copied out of the guest.
type Image struct {
	Name  string   // for errors only; guest-controlled
	Base  uint64   // virtual address the image is mapped at
	Mem   []byte   // the mapped form, a multiple of PageSize long; Mem[0] is at Base
	Pages []Origin // one per page of Mem
}
