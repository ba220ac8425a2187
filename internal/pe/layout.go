package pe

import (
	"fmt"
	"slices"
)

// sectorSize is the unit in which the memory manager addresses raw section data: when a
// section is mapped, PointerToRawData is rounded down to a multiple of it.
const sectorSize = 512

// span is a run of file bytes that the loader copied into the image: file bytes
// [off, off+n) are the memory bytes [rva, rva+n).
type span struct {
	rva, off, n uint64
	sect        int // index into Headers.Sections, -1 for the headers
}

// layout relates the on-disk form to the mapped form of one image.
type layout struct {
	spans    []span  // ascending by rva
	byOffset []span  // the same, ascending by file offset
	code     []Range // RVAs of executable sections, ascending, not overlapping
	fileSize uint64  // end of the last byte any section claims in the file
	last     int     // index of the span found last
	notes    []string
}

func alignUp(v, a uint64) uint64 { return (v + a - 1) &^ (a - 1) }

// plan computes which file bytes are mapped where, by the rules of the memory
// manager. memSize is the size of the mapped form and maxFile the largest file
// that may come out, both in bytes.
func (l *layout) plan(h *Headers, mem []byte, maxFile uint64) error {
	memSize := uint64(len(mem))
	l.spans, l.notes, l.last, l.fileSize = l.spans[:0], l.notes[:0], 0, 0
	tableEnd := uint64(h.sectTable) + uint64(len(h.Sections))*sectionHeaderSize
	headers := min(max(uint64(h.SizeOfHeaders), tableEnd), memSize)
	if h.lowAlignment() {
		return l.planFlat(h, tableEnd, mem, maxFile)
	}
	l.add(span{0, 0, headers, -1}, tableEnd)
	var copied, lastEnd uint64
	for i := range h.Sections {
		s := &h.Sections[i]
		if s.RawSize == 0 || s.RawOffset == 0 {
			continue
		}
		off, size := uint64(s.RawOffset)&^(sectorSize-1), uint64(s.RawSize)
		rva := uint64(s.VirtualAddress)
		mapped := alignUp(uint64(s.virtualSize()), PageSize)
		if rva >= memSize {
			l.note("section %d begins at RVA %#x, beyond the image", i, rva)
			mapped, rva = 0, memSize
		}
		n := min(size, mapped, memSize-rva)
		if rva < lastEnd && n > 0 {
			l.note("section %d overlaps the one before it in memory", i)
		}
		lastEnd = max(lastEnd, rva+n)
		if off+size > maxFile {
			// A loader would have refused a section outside its file, so a size that
			// large was forged after loading: only the mapped bytes count.
			l.note("section %d claims %d raw bytes, %d are mapped", i, size, n)
			if size = n; off+size > maxFile {
				return fmt.Errorf("lay out section %d at file offset %#x: %w", i, off, ErrTooLarge)
			}
		}
		if copied += n; copied > 2*memSize {
			return fmt.Errorf("lay out section %d: sections overlap: %w", i, ErrTooLarge)
		}
		l.add(span{rva, off, n, i}, off+size)
	}
	// Headers that reach beyond the last section map overlay. How much of it the
	// file has shows only where it is not zero.
	if s := &l.spans[0]; s.n > l.fileSize {
		s.n = max(l.fileSize, lastByte(mem[:s.n]))
		l.fileSize = max(l.fileSize, s.n)
	}
	l.index(h, memSize)
	return nil
}

// index sorts the spans and merges the executable sections, so that looking
// through all code takes one pass however many sections claim the same bytes.
func (l *layout) index(h *Headers, memSize uint64) {
	slices.SortStableFunc(l.spans, func(a, b span) int { return compareU64(a.rva, b.rva) })
	l.byOffset = append(l.byOffset[:0], l.spans...)
	slices.SortStableFunc(l.byOffset, func(a, b span) int { return compareU64(a.off, b.off) })
	l.code = l.code[:0]
	for i := range h.Sections {
		s := &h.Sections[i]
		from := min(uint64(s.VirtualAddress), memSize)
		to := min(from+uint64(s.virtualSize()), memSize)
		if s.Executable() && from < to {
			l.code = append(l.code, Range{from, to})
		}
	}
	slices.SortFunc(l.code, func(a, b Range) int { return compareU64(a.Start, b.Start) })
	n := 0
	for _, c := range l.code {
		if n > 0 && c.Start <= l.code[n-1].End {
			l.code[n-1].End = max(l.code[n-1].End, c.End)
			continue
		}
		l.code[n] = c
		n++
	}
	l.code = l.code[:n]
}

// planFlat lays out an image whose sections are aligned below the page size. The
// memory manager maps such a file as one piece, file offset = RVA, so that
// nothing but what lies beyond SizeOfImage is lost.
func (l *layout) planFlat(h *Headers, tableEnd uint64, mem []byte, maxFile uint64) error {
	end := tableEnd
	for i := range h.Sections {
		s := &h.Sections[i]
		if s.RawSize == 0 {
			continue
		}
		if e := uint64(s.RawOffset) + uint64(s.RawSize); e <= maxFile {
			end = max(end, e)
		} else {
			l.note("section %d ends at file offset %#x, beyond the image", i, e)
		}
	}
	if end > maxFile {
		return fmt.Errorf("lay out flat image of %d bytes: %w", end, ErrTooLarge)
	}
	n := end
	if end < uint64(len(mem)) {
		// What was mapped beyond the last section is overlay.
		n = max(end, lastByte(mem[:min(uint64(len(mem)), maxFile)]))
	}
	l.add(span{0, 0, min(n, uint64(len(mem))), -1}, n)
	l.index(h, uint64(len(mem)))
	return nil
}

// lastByte returns the length of b without trailing zeros.
func lastByte(b []byte) uint64 {
	n := len(b)
	for n > 0 && b[n-1] == 0 {
		n--
	}
	return uint64(n)
}

func (l *layout) add(s span, fileEnd uint64) {
	if s.n > 0 {
		l.spans = append(l.spans, s)
	}
	l.fileSize = max(l.fileSize, fileEnd)
}

// note records an anomaly. A hostile section table gets only a few lines.
func (l *layout) note(format string, args ...any) {
	if len(l.notes) < 16 {
		l.notes = append(l.notes, fmt.Sprintf(format, args...))
	}
}

// virtualSize is the size the section has in memory, in bytes, before rounding to pages.
func (s *Section) virtualSize() uint32 {
	if s.VirtualSize == 0 {
		return s.RawSize
	}
	return s.VirtualSize
}

// find returns the span that holds rva, or nil.
func (l *layout) find(rva uint64) *span {
	if l.last < len(l.spans) {
		if s := &l.spans[l.last]; rva >= s.rva && rva-s.rva < s.n {
			return s
		}
	}
	lo, hi := 0, len(l.spans)
	for lo < hi {
		m := (lo + hi) / 2
		if l.spans[m].rva <= rva {
			lo = m + 1
		} else {
			hi = m
		}
	}
	// Overlapping spans exist in hostile images only; looking a few back is enough
	// for the ones that a loader would accept.
	for i := lo - 1; i >= 0 && i >= lo-4; i-- {
		if s := &l.spans[i]; rva-s.rva < s.n {
			l.last = i
			return s
		}
	}
	return nil
}

// offset returns the file offset of n bytes at rva, if all of them are in the file.
func (l *layout) offset(rva, n uint64) (uint64, bool) {
	s := l.find(rva)
	if s == nil || n > s.n-(rva-s.rva) {
		return 0, false
	}
	return s.off + rva - s.rva, true
}
