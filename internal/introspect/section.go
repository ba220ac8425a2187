package introspect

import (
	"context"
	"fmt"

	"vmav.dev/vmav/internal/winstruct"
)

// Units of _SUBSECTION.StartingSector and NumberOfFullSectors: sectors of 512 bytes for an
// image, blocks of 4 KiB for a file that is mapped as data. SectorEndOffset has the
// remainder, which is why it has 12 bits.
const (
	imageSectorShift = 9
	dataSectorShift  = 12
)

// maxSubsections bounds the chain of a control area. An image has one subsection for its
// headers and one for each section. A file mapped as data gets another one each time it
// grows.
const maxSubsections = 1 << 12

// Subsection is a sequence of pages of a section, with the place of their bytes in the
// file.
type Subsection struct {
	First      uint64 // index of the first page in the section
	Pages      uint64
	Offset     uint64 // bytes into the file
	Size       uint64 // bytes that come from the file; the rest is zeros
	Protection uint8  // index into MmProtectToValue
	proto      uint64
}

// Writable reports whether processes may write to pages of the subsection, if only to
// private copies.
func (s *Subsection) Writable() bool { return s.Protection&7 >= 4 }

// Readable reports whether processes may read its pages. The lower bits of a protection
// index are 0 for no access; the upper ones say guard page or no access.
func (s *Subsection) Readable() bool { return s.Protection&7 != 0 && s.Protection>>3&2 == 0 }

// Executable reports whether its pages may be executed.
func (s *Subsection) Executable() bool { return executable(s.Protection) }

// Subsections reads the layout of an image that the memory manager recorded when it made
// the section. A process cannot change that record, unlike the headers. The result is nil
// if v maps no section or the build's structures are not known.
func (g *Guest) Subsections(v *VAD) ([]Subsection, error) {
	if v.control == 0 || v.proto == 0 || g.off.Control.Size == winstruct.Missing {
		return nil, nil
	}
	return g.subsections(v.control, v.proto)
}

// subsections follows a control area's chain. proto is the address of the section's first
// prototype entry if all entries lie in one array, as those of an image do. It is 0 if they
// do not, and First is then counted from the start of the file.
func (g *Guest) subsections(control, proto uint64) ([]Subsection, error) {
	o := &g.off.Subsection
	shift := uint(dataSectorShift)
	word, err := g.as.readRecord(control+uint64(g.off.Control.Flags), 4)
	if err != nil {
		return nil, fmt.Errorf("read control area at %#x: %w", control, err)
	}
	if word.field(g.off.Control.Image) != 0 {
		shift = imageSectorShift
	}
	rec := g.as.newRecord(o.Size)
	flags := rec.from(o.Flags)
	var out []Subsection
	for at := control + uint64(g.off.Control.Size); at != 0; at = rec.ptr(o.Next) {
		if len(out) == maxSubsections {
			return nil, fmt.Errorf("control area at %#x: more than %d subsections", control, maxSubsections)
		}
		if err := g.as.Read(rec.b, at); err != nil {
			return nil, fmt.Errorf("read subsection at %#x: %w", at, err)
		}
		if owner := rec.ptr(g.off.SubsectionControl); owner != control {
			return nil, fmt.Errorf("subsection at %#x belongs to %#x, not to the control area at %#x", at, owner, control)
		}
		sector := rec.field(o.Sector)
		if shift == dataSectorShift {
			sector |= flags.field(o.SectorHigh) << 32
		}
		s := Subsection{Pages: rec.field(o.Pages), Offset: sector << shift, proto: rec.ptr(o.Base),
			Size: rec.field(o.Full)<<shift + flags.field(o.End), Protection: uint8(flags.field(o.Protection))}
		if s.Pages > maxSectionPages || s.Offset > maxSectionPages*pageSize {
			return nil, fmt.Errorf("subsection at %#x: %d pages at offset %#x are out of bounds", at, s.Pages, s.Offset)
		}
		if proto != 0 {
			if s.proto < proto || (s.proto-proto)/g.as.f.pte > maxSectionPages {
				return nil, fmt.Errorf("subsection at %#x: its entries at %#x are not the section's", at, s.proto)
			}
			s.First = (s.proto - proto) / g.as.f.pte
		} else {
			s.First = s.Offset / pageSize
		}
		out = append(out, s)
	}
	return out, nil
}

// maxSectionPages bounds the pages that a subsection may claim: 1 TiB.
const maxSectionPages = 1 << 28

// viewShift is the size of a cache manager's view as a shift (VACB_MAPPING_GRANULARITY).
// vacbShift is the number of bits that index one level of the array of views. Up to 32 MiB
// there is one level, and each seven bits more add one.
const (
	viewShift     = 18
	vacbShift     = 7
	maxCachedSize = 1 << 48 // bytes: more than a volume holds
)

// FileFrames finds pages in memory that hold the file behind a FILE_OBJECT in its on-disk
// form: first through the prototype entries of its data section, then through the cache
// manager's views. It looks at limit bytes at most. size is the file's size in bytes, or 0
// if nothing in memory tells it. frames ends with the last page that is in memory. A file
// that was only ever mapped as an image has none.
func (g *Guest) FileFrames(ctx context.Context, file, limit uint64) (size uint64, frames []Frame, err error) {
	if g.off.FilePointers == winstruct.Missing {
		return 0, nil, nil // the build's structures are not known well enough
	}
	pointers, err := g.as.word(file + uint64(g.off.FilePointers))
	if err != nil {
		return 0, nil, fmt.Errorf("read file object at %#x: %w", file, err)
	}
	if pointers == 0 {
		return 0, nil, nil
	}
	rec, err := g.as.readRecord(pointers, g.off.Pointers.Size)
	if err != nil {
		return 0, nil, fmt.Errorf("read section object pointers at %#x: %w", pointers, err)
	}
	control, shared := rec.ptr(g.off.Pointers.Data), rec.ptr(g.off.Pointers.Cache)
	if control == 0 && shared == 0 {
		return 0, nil, nil
	}
	var subs []Subsection
	if control != 0 {
		if subs, err = g.subsections(control, 0); err != nil {
			return 0, nil, fmt.Errorf("data section: %w", err)
		}
		for i := range subs {
			size = max(size, subs[i].Offset+subs[i].Size)
		}
	}
	views := vacbs{g: g, shared: shared}
	if shared != 0 {
		if err := views.open(); err != nil {
			return 0, nil, err
		}
		size = views.fileSize
	}
	sub := 0
	find := func(i int) (Frame, error) {
		n := uint64(i)
		// The chain is in ascending order, so the search continues where it was.
		for sub < len(subs) && n >= subs[sub].First+subs[sub].Pages {
			sub++
		}
		if sub < len(subs) && n >= subs[sub].First && subs[sub].proto != 0 {
			pa, origin, err := g.as.prototype(subs[sub].proto+g.as.f.pte*(n-subs[sub].First), 0)
			if err != nil || origin == PagePrototype {
				return Frame{GPA: pa, Origin: origin}, err
			}
		}
		va := views.at(n * pageSize)
		if va == 0 {
			return Frame{}, nil
		}
		pa, origin, err := g.as.translate(va)
		return Frame{GPA: pa, Origin: origin}, err
	}
	// The guest claims the size, so nothing is allocated before a page is found.
	for i := range int((min(size, limit) + pageSize - 1) / pageSize) {
		f, err := find(i)
		if err != nil {
			return 0, nil, fmt.Errorf("look for cached file: %w", err)
		}
		if f.InMemory() {
			frames = append(frames, make([]Frame, i-len(frames))...)
			frames = append(frames, f)
		}
		if i%(1<<12) == 0 && ctx.Err() != nil {
			return 0, nil, ctx.Err()
		}
	}
	return size, frames, nil
}

// vacbs finds the cache manager's views of one file. VACB is Windows' name for their
// descriptors.
type vacbs struct {
	g        *Guest
	shared   uint64 // SHARED_CACHE_MAP
	array    uint64
	fileSize uint64
	top      uint // bits of a file offset that the array covers
	view     uint64
	base     uint64 // of that view, 0 where it is not mapped
	known    bool
}

func (v *vacbs) open() error {
	o := &v.g.off.Cache
	rec, err := v.g.as.readRecord(v.shared, o.Size)
	if err != nil {
		return fmt.Errorf("read shared cache map at %#x: %w", v.shared, err)
	}
	v.array, v.fileSize = rec.ptr(o.Vacbs), rec.u64(o.FileSize)
	size := rec.u64(o.SectionSize)
	if v.fileSize >= maxCachedSize || size >= maxCachedSize {
		return fmt.Errorf("shared cache map at %#x: sizes of %#x and %#x are out of bounds", v.shared, v.fileSize, size)
	}
	for v.top = viewShift + vacbShift; size > 1<<v.top; {
		v.top += vacbShift
	}
	return nil
}

// at returns the address at which the file's byte at off is mapped, or 0 if it is not.
func (v *vacbs) at(off uint64) uint64 {
	if v.array == 0 || off>>v.top != 0 {
		return 0
	}
	if view := off >> viewShift; !v.known || view != v.view {
		v.known, v.view, v.base = true, view, v.find(off)
	}
	if v.base == 0 {
		return 0
	}
	return v.base + off&(1<<viewShift-1)
}

func (v *vacbs) find(off uint64) uint64 {
	at := v.array
	for shift := v.top; shift > viewShift; {
		shift -= vacbShift
		next, err := v.g.as.word(at + off>>shift&(1<<vacbShift-1)*uint64(v.g.as.ptr))
		if err != nil || next == 0 {
			return 0
		}
		at = next
	}
	o := &v.g.off.Vacb
	rec, err := v.g.as.readRecord(at, o.Size)
	if err != nil || rec.ptr(o.Map) != v.shared {
		return 0
	}
	return rec.ptr(o.Base)
}
