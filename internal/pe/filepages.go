package pe

import (
	"bytes"
	"encoding/hex"
	"slices"
)

// FilePage is a run of the file's own bytes, in on-disk form, that the guest
// still holds in its cache (data section object, shared cache map).
type FilePage struct {
	Offset uint64 // file offset, in bytes
	Data   []byte // as long as is known to be valid
}

// maxConflicts bounds the conflicts listed in a fidelity record.
const maxConflicts = 256

// mergeFilePages fills what the mapping does not have from the file's cached pages. The
// order of trust is: a byte of a read-only section in the mapping, then the cached file,
// then zeros. Where both exist they are compared. In a writable section they may differ,
// and the file's bytes are used, because the result is to be the file. In any other section
// a difference is a conflict, and the mapping's bytes are kept, because they are what runs.
func (r *Rebuilder) mergeFilePages() {
	// If the cache has all of the file, the sum of the merged bytes is computed on the way,
	// while they are in the processor's cache.
	r.sum, r.summing = 0, len(r.opt.FilePages) == 1 && r.opt.FilePages[0].Offset == 0 &&
		len(r.opt.FilePages[0].Data) >= len(r.data) && r.checkSumUsable()
	slices.SortStableFunc(r.gaps, func(a, b Gap) int { return compareU64(a.Start, b.Start) })
	for i := range r.opt.FilePages {
		p := &r.opt.FilePages[i]
		end := p.Offset + uint64(len(p.Data))
		if end < p.Offset {
			continue
		}
		r.compareFilePage(p, min(end, uint64(len(r.data))))
	}
}

// fillOverlay copies the cached pages behind the last section into the file. It is called
// before anything uses the checksum.
func (r *Rebuilder) fillOverlay() {
	size := uint64(len(r.data))
	r.overlayIn = r.overlayAt == size
	if r.overlayIn {
		return
	}
	for i := range r.opt.FilePages {
		p := &r.opt.FilePages[i]
		from, to := max(p.Offset, r.overlayAt), min(p.Offset+uint64(len(p.Data)), size)
		if from < to && p.Offset <= from {
			copy(r.data[from:to], p.Data[from-p.Offset:])
			r.known(from, to)
		}
	}
	slices.SortFunc(r.recovered, func(a, b Range) int { return compareU64(a.Start, b.Start) })
	r.overlayIn = r.recoveredAll(r.overlayAt, size)
	r.sumKnown = false
}

// cachedBase reads the preferred base from the cached header of the file. It can do so if
// the layout, which gives the place of that field, is the file's own.
func (r *Rebuilder) cachedBase() (uint64, bool) {
	if r.madeUp || !r.fid.Headers.own() {
		return 0, false
	}
	at, size := r.hdr.imageBaseField()
	from, to := uint64(at), uint64(at)+uint64(size)
	for i := range r.opt.FilePages {
		p := &r.opt.FilePages[i]
		if p.Offset <= from && to <= p.Offset+uint64(len(p.Data)) {
			return getUint(p.Data[from-p.Offset : to-p.Offset]), true
		}
	}
	return 0, false
}

// compareFilePage merges the part of p before end, piecewise by section.
func (r *Rebuilder) compareFilePage(p *FilePage, end uint64) {
	for off := p.Offset; off < end; {
		s, next := r.spanAtOffset(off, end)
		src := p.Data[off-p.Offset : next-p.Offset]
		dst := r.data[off:next]
		switch {
		case s == nil: // never mapped
			copy(dst, src)
			r.known(off, next)
		case r.img.Pages[(s.rva+off-s.off)/PageSize] == Absent:
			copy(dst, src)
			r.known(off, next)
		case s.sect >= 0 && r.hdr.Sections[s.sect].Writable():
			if !bytes.Equal(dst, src) {
				copy(dst, src)
				r.state[(s.rva+off-s.off)/PageSize] |= pageReplaced
			}
			r.known(off, next)
		default:
			r.compareCode(s, off, dst, src)
		}
		if r.summing {
			r.sum += residue(dst, off)
		}
		off = next
	}
}

// spanAtOffset returns the span that holds the file byte at off and the end of
// the piece that has one state: at most one page of one span.
func (r *Rebuilder) spanAtOffset(off, end uint64) (*span, uint64) {
	spans := r.lay.byOffset
	i, _ := slices.BinarySearchFunc(spans, off, func(s span, at uint64) int {
		if s.off <= at {
			return -1
		}
		return 1
	})
	if i < len(spans) {
		end = min(end, spans[i].off)
	}
	for j := i - 1; j >= 0 && j >= i-4; j-- {
		if s := &spans[j]; off < s.off+s.n {
			rva := s.rva + off - s.off
			return s, min(end, s.off+s.n, off+PageSize-rva%PageSize)
		}
	}
	return nil, end
}

// compareCode compares a piece of a read-only section with the file's bytes.
func (r *Rebuilder) compareCode(s *span, off uint64, mem, file []byte) {
	if bytes.Equal(mem, file) {
		r.known(off, off+uint64(len(mem)))
		return
	}
	eachDifference(mem, file, func(i, j int) {
		from, to := off+uint64(i), off+uint64(j)
		if r.isGap(from, to) {
			// These bytes are known from the file only.
			copy(mem[i:j], file[i:j])
			r.known(from, to)
			return
		}
		r.conflict(s, from, mem[i:j], file[i:j], FileCache)
	})
}

// eachDifference calls f for each run of differing bytes of two equally long pieces.
// Runs less than eight equal bytes apart are one.
func eachDifference(a, b []byte, f func(from, to int)) {
	for i := 0; i < len(a); i++ {
		if a[i] == b[i] {
			continue
		}
		j := i + 1
		for same := 0; j < len(a) && same < 8; j++ {
			if same++; a[j] != b[j] {
				same = 0
			}
		}
		for j > i && a[j-1] == b[j-1] {
			j--
		}
		f(i, j)
		i = j - 1
	}
}

// conflict records that the file bytes from off on differ between the mapping and another
// source. A place in conflict with two sources is recorded once.
func (r *Rebuilder) conflict(s *span, off uint64, mem, file []byte, from Origin) {
	where := Range{off, off + uint64(len(mem))}
	if len(r.fid.Conflicts) >= maxConflicts || slices.ContainsFunc(r.fid.Conflicts, func(c Conflict) bool { return c.Range == where }) {
		return
	}
	const shown = 16
	c := Conflict{Range: where, RVA: s.rva + off - s.off, Source: from.String(),
		Memory: hex.EncodeToString(mem[:min(len(mem), shown)]), File: hex.EncodeToString(file[:min(len(file), shown)])}
	if s.sect >= 0 {
		c.Section = r.hdr.Sections[s.sect].Name
		c.Code = r.hdr.Sections[s.sect].Executable()
	}
	r.fid.Conflicts = append(r.fid.Conflicts, c)
}

// isGap reports whether the run lies in a gap.
func (r *Rebuilder) isGap(from, to uint64) bool {
	i, _ := slices.BinarySearchFunc(r.gaps, from, func(g Gap, at uint64) int {
		if g.Start <= at {
			return -1
		}
		return 1
	})
	for j := i - 1; j >= 0 && j >= i-4; j-- {
		if to <= r.gaps[j].End {
			return true
		}
	}
	return false
}

// known records that bytes are the file's own, even if they lie in a gap.
func (r *Rebuilder) known(from, to uint64) {
	if n := len(r.recovered); n > 0 && r.recovered[n-1].End == from {
		r.recovered[n-1].End = to
		return
	}
	r.recovered = append(r.recovered, Range{from, to})
}
