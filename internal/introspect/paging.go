package introspect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"vmav.dev/vmav/internal/source"
)

const (
	pageSize  = source.PageSize
	pageShift = 12
	pfnMask   = 0x000ffffffffff000 // bits 12 to 51 of a page table entry
)

// ErrNotPresent reports a virtual address that is not mapped, or whose page is not in RAM.
var ErrNotPresent = errors.New("page not present")

// PageOrigin says how a page of virtual memory was found.
type PageOrigin uint8

// Origins of a page.
const (
	PageAbsent     PageOrigin = iota // not mapped, or not in RAM
	PageResident                     // through a valid entry
	PageTransition                   // through a transition entry: trimmed from the working set and still in RAM
	PagePrototype                    // through the section's prototype entry
	PageDemandZero                   // never touched: the guest reads zeros
	PagePrivate                      // the process's private copy of a page of a section
	PageStandIn                      // through the prototype entry, in place of a private copy that is in a page file
	pagePagedOut                     // in a page file; internal, replaced before a Frame is handed out
)

// inMemory reports whether a page of this origin is in RAM.
func (o PageOrigin) inMemory() bool {
	return o != PageAbsent && o != PageDemandZero && o != pagePagedOut
}

// Bits of a page table entry, and of the forms that Windows gives an entry that is not
// valid (_MMPTE_TRANSITION, _MMPTE_PROTOTYPE; the same bits in every format and on every
// build).
const (
	pteValid      = 1 << 0
	pteLarge      = 1 << 7
	ptePrototype  = 1 << 10
	pteTransition = 1 << 11
	protoShift    = 16 // position of the prototype entry's address, on x64
)

// tables caches page tables for all address spaces of one guest, since they are read again
// and again. It is bounded and safe for concurrent use. Its pages are copies from the time
// they were read, until flush drops them.
type tables struct {
	src source.Source

	mu    sync.Mutex
	pages map[uint64]*[pageSize]byte // by frame number
	ring  []uint64                   // frame numbers in the order they came
	next  int
}

const maxTables = 2048 // pages: 8 MiB

func newTables(src source.Source) *tables {
	return &tables{src: src, pages: make(map[uint64]*[pageSize]byte), ring: make([]uint64, 0, maxTables)}
}

// entry returns the page table entry at a guest-physical address. size is that of the
// entry, 4 or 8 bytes; pa is a multiple of it.
func (t *tables) entry(pa, size uint64) (uint64, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	page, err := t.page(pa >> pageShift)
	if err != nil {
		return 0, err
	}
	if size == 4 {
		return uint64(binary.LittleEndian.Uint32(page[pa%pageSize&^3:])), nil
	}
	return binary.LittleEndian.Uint64(page[pa%pageSize&^7:]), nil
}

func (t *tables) page(pfn uint64) (*[pageSize]byte, error) {
	if p := t.pages[pfn]; p != nil {
		return p, nil
	}
	var p *[pageSize]byte
	if len(t.ring) == maxTables {
		p = t.pages[t.ring[t.next]]
		delete(t.pages, t.ring[t.next])
	}
	if p == nil {
		p = tableBuffers.Get().(*[pageSize]byte)
	}
	if err := t.src.ReadPhys(p[:], pfn<<pageShift); err != nil {
		if len(t.ring) == maxTables {
			// The evicted page's buffer goes with it; its slot stays empty.
			t.ring[t.next] = pfn
		}
		return nil, err
	}
	t.pages[pfn] = p
	if len(t.ring) < maxTables {
		t.ring = append(t.ring, pfn)
	} else {
		t.ring[t.next] = pfn
		t.next = (t.next + 1) % maxTables
	}
	return p, nil
}

// flush drops all pages, since the guest may have changed its page tables.
func (t *tables) flush() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.pages { // nobody uses a page without the lock
		tableBuffers.Put(p)
	}
	clear(t.pages)
	t.ring = t.ring[:0]
	t.next = 0
}

// softPTE describes how a build writes entries that are not valid.
type softPTE struct {
	invalidMask uint64 // MiState.Hardware.InvalidPteMask; 0 if the build inverts nothing
	swizzle     uint64 // mask of the bit that marks an entry as not inverted; 0 if none
	unknown     bool   // the build may invert, and how is not known: no transition entry is used
	opaque      bool   // the build has forms that are not known: no entry but a valid one is used
}

// opaqueSince is the first build of whose entries that are not valid too little is known:
// those that lead to a subsection hold an index in place of its address, and all the other
// forms have changed too (kernullist/ntoffsets-data, 28000.2525).
const opaqueSince = 28000

// unprovenPTEs names them.
const unprovenPTEs = "_MMPTE"

// frame returns the entry with the frame's bits no longer inverted.
func (s softPTE) frame(pte uint64) uint64 {
	if s.invalidMask != 0 && pte&s.swizzle == 0 {
		pte ^= s.invalidMask
	}
	return pte
}

// AddressSpace translates the virtual addresses of one page table tree. It is safe for
// concurrent use and holds no resources. It reads through its guest's source.
type AddressSpace struct {
	t      *tables
	dtb    uint64 // physical, without flag bits
	f      *format
	ptr    uint32 // bytes of a pointer in the structures that are read: as f, except after as32
	soft   softPTE
	noExec bool          // the guest uses the no-execute bit
	kernel *AddressSpace // in which prototype entries lie; nil if this is the kernel's own
}

// newSpace returns the address space of the page tables that a value of CR3 refers to.
func newSpace(t *tables, f *format, cr3 uint64) *AddressSpace {
	return &AddressSpace{t: t, dtb: cr3 & f.root, f: f, ptr: f.ptr, noExec: f.noExec}
}

// as32 returns the same address space for reading 32-bit structures of a wow64 process.
func (as *AddressSpace) as32() *AddressSpace {
	n := *as
	n.ptr = 4
	return &n
}

// kernelSpace returns the address space in which kernel addresses are resolved.
func (as *AddressSpace) kernelSpace() *AddressSpace {
	if as.kernel == nil {
		return as
	}
	return as.kernel
}

// DTB returns the guest-physical address of the top-level page table.
func (as *AddressSpace) DTB() uint64 { return as.dtb }

// walk returns the last page table entry for va, and the size of its page as a shift. ok is
// false if a table above it is missing.
func (as *AddressSpace) walk(va uint64) (pte uint64, shift uint, ok bool, err error) {
	return as.walkTo(va, pageShift)
}

// walkTo does what walk does, and stops at entries that map 1<<deepest bytes.
func (as *AddressSpace) walkTo(va uint64, deepest uint) (pte uint64, shift uint, ok bool, err error) {
	f := as.f
	if !f.canonical(va) {
		return 0, 0, false, nil
	}
	table := as.dtb
	for shift = f.top; ; shift -= f.step {
		pte, err = as.t.entry(f.entryAt(table, va, shift), f.pte)
		if err != nil {
			if errors.Is(err, source.ErrHole) {
				return 0, 0, false, nil // a table that points outside RAM
			}
			return 0, 0, false, err
		}
		if shift == deepest {
			return pte, shift, true, nil
		}
		if pte&pteValid == 0 {
			return pte, shift, false, nil
		}
		if f.large(pte, shift) {
			return pte, shift, true, nil
		}
		table = pte & pfnMask
	}
}

// translate returns the guest-physical address of va, whatever kind of entry leads to the
// page. It does not allocate. For a page that is not in RAM the origin is PageAbsent,
// PageDemandZero or pagePagedOut, and there is no address.
func (as *AddressSpace) translate(va uint64) (pa uint64, origin PageOrigin, err error) {
	pte, shift, ok, err := as.walk(va)
	if err != nil || !ok {
		return 0, PageAbsent, err
	}
	if pte&pteValid != 0 {
		return as.f.frame(pte, shift) | va&(1<<shift-1), PageResident, nil
	}
	return as.invalid(pte, va, true)
}

// invalid resolves an entry that is not valid. proto allows one step through a prototype
// entry.
func (as *AddressSpace) invalid(pte, va uint64, proto bool) (pa uint64, origin PageOrigin, err error) {
	switch {
	case pte == 0:
		return 0, PageAbsent, nil // only the VAD tells
	case as.soft.opaque:
		return 0, PageAbsent, nil
	case as.f.plainPointer(pte):
		if !proto {
			return 0, PageAbsent, nil // to a subsection: the page is in its file only
		}
		// To a prototype entry, or to a subsection. The latter begins with a pointer, and so
		// is never taken for an entry of a page that is in memory.
		return as.prototype(pte&^7, va)
	case pte&ptePrototype != 0:
		if !proto {
			return 0, PageAbsent, nil // a subsection entry: the page is in its file only
		}
		address, ok := as.f.prototype(pte)
		if !ok {
			return 0, PageAbsent, nil // "see the VAD"
		}
		return as.prototype(address, va)
	case pte&pteTransition != 0:
		if as.soft.unknown {
			return 0, PageAbsent, nil
		}
		return as.soft.frame(pte)&as.f.transition | va%pageSize, PageTransition, nil
	case pte>>as.f.fileShift == 0:
		return 0, PageDemandZero, nil
	}
	return 0, pagePagedOut, nil
}

// prototype resolves va through the prototype entry at a kernel address.
func (as *AddressSpace) prototype(address, va uint64) (pa uint64, origin PageOrigin, err error) {
	at, ok, err := as.prototypeGPA(address)
	if err != nil || !ok {
		return 0, PageAbsent, err
	}
	pte, err := as.t.entry(at, as.f.pte)
	if err != nil {
		if errors.Is(err, source.ErrHole) {
			return 0, PageAbsent, nil
		}
		return 0, PageAbsent, err
	}
	frame, err := as.prototypeFrame(pte)
	if !frame.InMemory() {
		return 0, frame.Origin, err
	}
	return frame.GPA | va%pageSize, frame.Origin, err
}

// Translate returns the guest-physical address of va. The error wraps ErrNotPresent if the
// page is not in RAM.
func (as *AddressSpace) Translate(va uint64) (uint64, error) {
	pa, origin, err := as.translate(va)
	if err != nil {
		return 0, fmt.Errorf("translate %#x (DTB %#x): %w", va, as.dtb, err)
	}
	if !origin.inMemory() {
		return 0, &AddressError{VA: va, DTB: as.dtb, Err: ErrNotPresent}
	}
	return pa, nil
}

// AddressError says which virtual address could not be read. Err is ErrNotPresent or an
// error of the source.
type AddressError struct {
	VA, DTB uint64
	Err     error
}

// Error implements error.
func (e *AddressError) Error() string {
	return fmt.Sprintf("address %#x (DTB %#x): %v", e.VA, e.DTB, e.Err)
}

// Unwrap returns the cause, for errors.Is and errors.As.
func (e *AddressError) Unwrap() error { return e.Err }

// Read fills p from the virtual address va, or fails as a whole; on error the content of p
// is undefined. Demand-zero pages read as zeros. The error is an *AddressError. Read does
// not allocate when it succeeds.
func (as *AddressSpace) Read(p []byte, va uint64) error {
	if va+uint64(len(p)) < va {
		return &AddressError{VA: va, DTB: as.dtb, Err: errors.New("wraps around the address space")}
	}
	for len(p) > 0 {
		n := min(uint64(len(p)), pageSize-va%pageSize)
		pa, origin, err := as.translate(va)
		switch {
		case err != nil:
			return &AddressError{VA: va, DTB: as.dtb, Err: err}
		case origin == PageDemandZero:
			clear(p[:n])
		case !origin.inMemory():
			return &AddressError{VA: va, DTB: as.dtb, Err: ErrNotPresent}
		default:
			if err := as.t.src.ReadPhys(p[:n], pa); err != nil {
				return &AddressError{VA: va, DTB: as.dtb, Err: err}
			}
		}
		p, va = p[n:], va+n
	}
	return nil
}

// wordPool keeps buffers for single words off the heap: a buffer passed through an
// interface escapes.
var wordPool = sync.Pool{New: func() any { return new([8]byte) }}
