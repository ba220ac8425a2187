package pe

// PageSize is the size of a page of an Image, in bytes.
const PageSize = 4096

// Origin says where the bytes of one page of an Image came from.
type Origin uint8

// Origins of a page. Their order has no meaning.
const (
	Absent       Origin = iota // not found anywhere; the bytes are zeros without meaning
	Resident                   // through a valid page table entry of the process
	Transition                 // through a transition entry: trimmed from the working set, still in RAM
	Prototype                  // through the section object's prototype page table entry
	DemandZero                 // never touched: the guest reads zeros
	Private                    // a copy-on-write page of this process: it was written and may differ from the file
	FileCache                  // from the file's own bytes in the guest's cache, see Options.FilePages
	OtherProcess               // another process's private copy, which its loader has changed as this process's would have
	PagedIn                    // the section's page, which the guest has read in on request
	numOrigins
)

// String returns the origin's name in the fidelity record.
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

// Image is a copy of one mapped PE image of the guest.
type Image struct {
	Name  string   // for errors only; guest-controlled
	Base  uint64   // virtual address the image is mapped at
	Mem   []byte   // the mapped form, a multiple of PageSize long; Mem[0] is at Base
	Pages []Origin // one per page of Mem

	// PrivateKnown says that every private copy of the process is marked Private. The other
	// pages are those of the section, which nobody writes to.
	PrivateKnown bool
	// Shared has the section's pages behind pages marked Private, in ascending order: what
	// the process would see if it had not written.
	Shared []SharedPage
	// StandIns is the number of pages that stand in for private copies in a page file. The
	// content of those copies is not known.
	StandIns int
}

// SharedPage is a page of a section in its mapped form.
type SharedPage struct {
	Page int    // index into Image.Pages
	Data []byte // PageSize bytes
}

// present reports whether n bytes at rva lie in Mem on pages that are not absent.
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
