package pe

// PageSize is the granule of presence in an Image, in bytes.
const PageSize = 4096

// Origin says where the bytes of one page of an Image came from.
type Origin uint8

// Origins of a page, in ascending order of nothing in particular.
const (
	Absent       Origin = iota // not present anywhere the source could look; the bytes are zeros and mean nothing
	Resident                   // through a valid page table entry of the process
	Transition                 // through a transition entry: trimmed from the working set, still in RAM
	Prototype                  // through the section object's prototype page table entry
	DemandZero                 // never touched: the guest would see zeros
	Private                    // a copy-on-write page of this process: it was written and may differ from the file
	FileCache                  // from the file's own bytes in the guest's cache, see Options.FilePages
	OtherProcess               // another process's own copy: its loader has changed it as this one's would have
	PagedIn                    // the section's page, which the guest has read in because it was asked to
	numOrigins
)

// String names the origin as the fidelity record spells it.
func (o Origin) String() string {
	switch o {
	case Absent:
		return "absent"
	case Resident:
		return "resident"
	case Transition:
		return "transition"
	case Prototype:
		return "prototype"
	case DemandZero:
		return "demand-zero"
	case Private:
		return "private"
	case FileCache:
		return "file-cache"
	case OtherProcess:
		return "other-process"
	case PagedIn:
		return "paged-in"
	}
	return "unknown"
}

// Image is one mapped PE image, copied out of the guest.
type Image struct {
	Name  string   // for errors only; guest-controlled
	Base  uint64   // virtual address the image is mapped at
	Mem   []byte   // the mapped form, a multiple of PageSize long; Mem[0] is at Base
	Pages []Origin // one per page of Mem

	// PrivateKnown says that every page that the process has a copy of its own of is
	// marked Private: the others are those of the section, which nobody writes to.
	PrivateKnown bool
	// Shared are the section's pages under Private ones, ascending: what the process
	// would see if it had not written.
	Shared []SharedPage
	// StandIns are how many pages stand in for copies of the process's own that are in
	// a page file: what it sees there is not known.
	StandIns int
}

// SharedPage is a page of a section, in the mapped form.
type SharedPage struct {
	Page int    // index into Image.Pages
	Data []byte // PageSize bytes
}

// present says whether n bytes at rva lie in Mem on pages that are not absent.
func (m *Image) present(rva, n uint64) bool {
	if rva >= uint64(len(m.Mem)) || n > uint64(len(m.Mem))-rva {
		return false
	}
	if n == 0 {
		return true
	}
	for p := rva / PageSize; p <= (rva+n-1)/PageSize; p++ {
		if m.Pages[p] == Absent {
			return false
		}
	}
	return true
}
