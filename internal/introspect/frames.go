package introspect

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"vmav.dev/vmav/internal/source"
)

// Frame says where a page of virtual memory is in guest-physical memory.
type Frame struct {
	GPA    uint64 // guest-physical address of the page; only where InMemory
	Origin PageOrigin
	// Executable reports whether the process's own entry for the page allows execution. It
	// is meaningless for a page that only the section has an entry for.
	Executable bool
}

// InMemory reports whether there is a page to read.
func (f Frame) InMemory() bool { return f.Origin.inMemory() }

// tableBuffers holds pages for the cache of page tables, and for copies of cached tables. A
// walk needs a copy, because another goroutine may replace the cached page meanwhile.
var tableBuffers = sync.Pool{New: func() any { return new([pageSize]byte) }}

// SectionFrames finds the pages of the section that v maps, starting with the page at
// v.Start, through the section's prototype entries. It fills frames and returns for how
// many of them the section has an entry. Pages behind those belong to the range and not to
// the section. Only a source that fails is an error.
func (g *Guest) SectionFrames(v *VAD, frames []Frame) (n int, err error) {
	if v.proto == 0 || v.lastProto < v.proto {
		return 0, nil
	}
	n = int(min(uint64(len(frames)), (v.lastProto-v.proto)/g.as.f.pte+1))
	if err := g.as.prototypes(v.proto, frames[:n]); err != nil {
		return 0, fmt.Errorf("find pages of the section at %#x: %w", v.Start, err)
	}
	return n, nil
}

// SectionID identifies the section that a range maps. SectionFrames, Subsections and
// FileFrames give equal answers for two ranges with equal SectionIDs.
type SectionID struct {
	Control, First, Last, File uint64
}

// Section returns the identity of the section that the range maps.
func (v *VAD) Section() SectionID { return SectionID{v.control, v.proto, v.lastProto, v.file} }

// ImageFrames finds the pages at [base, base+len(frames) pages) of a process; base is a
// multiple of the page size. section has the pages of the section that is mapped from the
// address start on, as SectionFrames found them; it may be empty. With it, private copies
// are told apart from the section's pages, and pages are found that the process has not
// touched. Only a source that fails is an error.
func (g *Guest) ImageFrames(ctx context.Context, p *Process, base uint64, frames []Frame, start uint64, section []Frame) error {
	return g.space(p.DTB).frames(ctx, base, frames, start, section)
}

// RangeFrames finds the pages at [base, base+len(frames) pages) of a process, which lie in
// one range of its address space. v is the descriptor of that range, or nil if there is
// none. Only a source that fails is an error.
func (g *Guest) RangeFrames(ctx context.Context, p *Process, v *VAD, base uint64, frames []Frame) error {
	return g.space(p.DTB).rangeFrames(ctx, v, base, frames)
}

// DriverFrames finds the pages at [base, base+len(frames) pages) in the System process's
// address space. Drivers of session space are not mapped there: their pages come out as
// absent.
func (g *Guest) DriverFrames(ctx context.Context, base uint64, frames []Frame) error {
	return g.as.frames(ctx, base, frames, 0, nil)
}

// ReadFrames copies the pages of frames into mem, which must have room for all of them.
// Pages that are not in memory become zeros. A frame behind which there is no guest RAM is
// changed to PageAbsent. Only a source that fails is an error.
func (g *Guest) ReadFrames(ctx context.Context, mem []byte, frames []Frame) error {
	return readFrames(ctx, g.src, mem, frames)
}

func readFrames(ctx context.Context, src source.Source, mem []byte, frames []Frame) error {
	var reqs [batch]source.Request
	var index [batch]int
	n := 0
	flush := func() error {
		if n == 0 {
			return nil
		}
		if err := source.ReadBatch(src, reqs[:n]); err != nil {
			return err
		}
		for i := range n {
			err := reqs[i].Err
			if err == nil {
				continue
			}
			if !errors.Is(err, source.ErrHole) {
				return err
			}
			clear(reqs[i].P)
			frames[index[i]] = Frame{Origin: PageAbsent}
		}
		n = 0
		return ctx.Err()
	}
	for i := range frames {
		page := mem[i*pageSize : (i+1)*pageSize]
		if !frames[i].InMemory() {
			clear(page)
			continue
		}
		reqs[n] = source.Request{Addr: frames[i].GPA &^ (pageSize - 1), P: page}
		index[n] = i
		if n++; n == batch {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

// frames finds the pages at base, one page table at a time. section has the pages of the
// section that is mapped from start on; it may be empty.
func (as *AddressSpace) frames(ctx context.Context, base uint64, frames []Frame, start uint64, section []Frame) error {
	if base%pageSize != 0 {
		return fmt.Errorf("find pages at %#x: not on a page boundary", base)
	}
	buf := tableBuffers.Get().(*[pageSize]byte)
	defer tableBuffers.Put(buf)
	for i := 0; i < len(frames); {
		if err := ctx.Err(); err != nil {
			return err
		}
		va := base + uint64(i)*pageSize
		perTable := pageSize / as.f.pte
		n := int(min(uint64(len(frames)-i), perTable-va>>pageShift%perTable))
		if err := as.tableFrames(buf, va, frames[i:i+n]); err != nil {
			return fmt.Errorf("find pages at %#x: %w", va, err)
		}
		i += n
	}
	addSection(base, frames, start, section)
	return nil
}

// addSection combines what the process's own entries say of the pages at base with the
// pages of the section that is mapped from start on. No frame has the origin pagePagedOut
// afterwards.
func addSection(base uint64, frames []Frame, start uint64, section []Frame) {
	for i := range frames {
		va := base + uint64(i)*pageSize
		if n := (va - start) / pageSize; va >= start && n < uint64(len(section)) {
			frames[i] = frames[i].withSection(section[n])
		} else if frames[i].Origin == pagePagedOut {
			frames[i].Origin = PageAbsent
		}
	}
}

// withSection returns the page that a process sees if its own entry says f and the section
// has shared. A resident page that is not the section's is a private copy: a valid entry
// for a shared page implies a valid prototype entry.
func (f Frame) withSection(shared Frame) Frame {
	switch f.Origin {
	case PageAbsent:
		f = shared
	case pagePagedOut:
		if f = shared; f.Origin == PagePrototype {
			f.Origin = PageStandIn
		}
	case PageResident, PageTransition:
		if shared.GPA != f.GPA {
			f.Origin = PagePrivate
		}
	}
	if f.Origin == pagePagedOut {
		f.Origin = PageAbsent
	}
	return f
}

// tableFrames finds the pages from va on that a single last-level table maps, through the
// process's own entries. buf receives a copy of the table.
func (as *AddressSpace) tableFrames(buf *[pageSize]byte, va uint64, frames []Frame) error {
	f := as.f
	entry, shift, ok, err := as.walkTo(va, pageShift+f.step)
	if err != nil {
		return err
	}
	if !ok || entry&pteValid == 0 {
		for i := range frames {
			frames[i] = Frame{Origin: PageAbsent}
		}
		return nil
	}
	if f.large(entry, shift) {
		for i := range frames {
			frames[i] = Frame{f.frame(entry, shift) | (va+uint64(i)*pageSize)&(1<<shift-1), PageResident, entry&pteNX == 0}
		}
		return nil
	}
	if err := as.t.copyTable(buf, entry&pfnMask); err != nil {
		if !errors.Is(err, source.ErrHole) {
			return err
		}
		clear(buf[:])
	}
	return as.entryFrames(buf, va, frames)
}

// entryFrames decodes the entries for the pages from va on in a copied last-level table.
func (as *AddressSpace) entryFrames(table *[pageSize]byte, va uint64, frames []Frame) error {
	first := va >> pageShift % (pageSize / as.f.pte)
	for i := range frames {
		pte := as.f.entryIn(table, first+uint64(i))
		switch {
		case pte&pteValid != 0:
			frames[i] = Frame{pte & pfnMask, PageResident, pte&pteNX == 0}
		case pte == 0:
			frames[i] = Frame{Origin: PageAbsent}
		default:
			pa, origin, err := as.invalid(pte, va+uint64(i)*pageSize, true)
			if err != nil {
				return err
			}
			frames[i] = Frame{pa, origin, !as.noExec || executable(uint8(pte>>protectShift&31))}
		}
	}
	return nil
}

// prototypes resolves consecutive prototype entries, of which the first is at a kernel
// address.
func (as *AddressSpace) prototypes(address uint64, frames []Frame) error {
	buf := tableBuffers.Get().(*[pageSize]byte)
	defer tableBuffers.Put(buf)
	size := as.f.pte
	for i := 0; i < len(frames); {
		at := address + size*uint64(i)
		n := int(min(uint64(len(frames)-i), (pageSize-at%pageSize+size-1)/size))
		if err := as.prototypePage(buf, at, frames[i:i+n]); err != nil {
			return err
		}
		i += n
	}
	return nil
}

// prototypePage resolves prototype entries that lie on one page.
func (as *AddressSpace) prototypePage(buf *[pageSize]byte, address uint64, frames []Frame) error {
	at, ok, err := as.prototypeGPA(address)
	if err != nil {
		return err
	}
	if ok {
		if err := as.t.copyTable(buf, at&^(pageSize-1)); err != nil {
			if !errors.Is(err, source.ErrHole) {
				return err
			}
			ok = false
		}
	}
	for i := range frames {
		frames[i] = Frame{Origin: PageAbsent}
		if !ok {
			continue
		}
		if frames[i], err = as.prototypeFrame(as.f.entryIn(buf, address%pageSize/as.f.pte+uint64(i))); err != nil {
			return err
		}
	}
	return nil
}

// prototypeGPA returns the guest-physical address of the prototype entry at a kernel
// address. ok is false if no valid page is mapped there.
func (as *AddressSpace) prototypeGPA(address uint64) (pa uint64, ok bool, err error) {
	entry, shift, ok, err := as.kernelSpace().walk(address)
	if err != nil || !ok || entry&pteValid == 0 {
		return 0, false, err
	}
	return as.f.frame(entry, shift) | address&(1<<shift-1)&^(as.f.pte-1), true, nil
}

// prototypeFrame decodes a prototype entry.
func (as *AddressSpace) prototypeFrame(pte uint64) (Frame, error) {
	if pte&pteValid != 0 {
		return Frame{GPA: pte & pfnMask, Origin: PagePrototype}, nil
	}
	pa, origin, err := as.invalid(pte, 0, false)
	if origin == PageTransition {
		origin = PagePrototype
	}
	return Frame{GPA: pa, Origin: origin}, err
}

// copyTable copies the page at a guest-physical address through the cache.
func (t *tables) copyTable(buf *[pageSize]byte, pa uint64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	page, err := t.page(pa >> pageShift)
	if err != nil {
		return err
	}
	*buf = *page
	return nil
}
