package pe

import (
	"fmt"
	"slices"
)

// finish completes the gaps, judges the sections, the checksum and the signatures, and
// returns the result.
func (r *Rebuilder) finish() *File {
	f := r.fid
	r.settleGaps()
	r.checkSum()
	r.neverMapped()
	r.memoryOnly()
	r.judgeSections()
	h := r.hdr
	h.Sections = slices.Clone(r.hdr.Sections)
	h.ImageBase = f.Base.Preferred
	f.DotNet = h.NumDirs > dirCLR && h.Dirs[dirCLR].RVA != 0
	if n := r.img.StandIns; n > 0 {
		f.Notes = append(f.Notes, fmt.Sprintf("%d pages that the process has written to are in the page file; the section's stand in for them", n))
	}
	f.Signatures = f.signatures(&h)
	return &File{Data: r.data, Headers: &h, Fidelity: f}
}

// settleGaps sorts the gaps, removes what became known, resolves overlaps in favour of the
// stronger cause, and counts the bytes in doubt again.
func (r *Rebuilder) settleGaps() {
	size := uint64(len(r.data))
	slices.SortStableFunc(r.gaps, func(a, b Gap) int { return compareU64(a.Start, b.Start) })
	slices.SortFunc(r.recovered, func(a, b Range) int { return compareU64(a.Start, b.Start) })
	out := r.gaps[:0:0]
	var done uint64
	for _, g := range r.gaps {
		g.Start, g.End = max(g.Start, done), min(g.End, size)
		i, _ := slices.BinarySearchFunc(r.recovered, g.Start, func(k Range, at uint64) int {
			if k.End <= at {
				return -1
			}
			return 1
		})
		for ; g.Start < g.End; i++ {
			stop := g.End
			if i < len(r.recovered) {
				stop = min(stop, r.recovered[i].Start)
			}
			if g.Start < stop {
				if n := len(out); n > 0 && out[n-1].End == g.Start && out[n-1].Cause == g.Cause {
					out[n-1].End = stop
				} else {
					out = append(out, Gap{Range{g.Start, stop}, g.Cause})
				}
			}
			if i >= len(r.recovered) || stop == g.End && r.recovered[i].Start >= g.End {
				break
			}
			g.Start = max(g.Start, r.recovered[i].End)
		}
		done = max(done, g.End)
	}
	f := r.fid
	b := &f.Bytes
	var missing, assumed, overlay uint64
	for _, g := range out {
		switch g.Cause {
		case CauseMissing:
			missing += g.Len()
		case CauseUnmapped:
			assumed += g.Len()
		case CauseOverlay:
			overlay += g.Len()
		default:
			b.Unknown += g.Len()
		}
	}
	recovered := b.Missing - missing + b.Assumed - assumed + b.Overlay - overlay
	b.Derived = min(r.derived, recovered)
	b.FileCache += recovered - b.Derived
	b.Missing, b.Assumed, b.Overlay = missing, assumed, overlay
	f.Gaps = out
}

// checkSum compares the header's checksum with the file, unless the search for
// the base has done so already.
func (r *Rebuilder) checkSum() {
	c := &r.fid.CheckSum
	c.Header = r.hdr.CheckSum
	if !r.checkSumUsable() || r.fid.Bytes.Missing != 0 || r.fid.Bytes.Overlay != 0 || r.fid.Base.Method == BaseSolved {
		return // or it proves nothing, for it was used up to find the base
	}
	c.Checked = true
	switch {
	case r.solved && len(r.opt.FilePages) == 0: // nothing has changed the file since but relocations
		c.Computed = sumToCheckSum(r.solver.after(r.fid.Base.Actual, r.fid.Base.Preferred), len(r.data))
	case r.summing:
		field := uint64(r.hdr.checkSumField())
		c.Computed = sumToCheckSum((r.sum%65535+65535-residue(r.data[field:field+4], field))%65535, len(r.data))
	default:
		c.Computed = CheckSum(r.data, int(r.hdr.checkSumField()))
	}
	c.Matches = c.Computed == c.Header
}

// neverMapped collects what the headers say about bytes beyond the last section.
func (r *Rebuilder) neverMapped() {
	n := &r.fid.NeverMapped
	h, size := &r.hdr, uint64(len(r.data))
	if r.opt.FileSize != 0 && r.opt.FileSize == size {
		n.OverlayKnown = true
		n.OverlayAtLeast = r.fid.Bytes.Overlay
	}
	if d := h.Dirs[dirSecurity]; h.NumDirs > dirSecurity && d.Size != 0 && d.RVA != 0 {
		n.Certificate = Range{uint64(d.RVA), uint64(d.RVA) + uint64(d.Size)}
		if n.Certificate.End > size {
			n.OverlayAtLeast = n.Certificate.End - size
		}
	}
	if h.Symbols != 0 && h.SymbolTable != 0 {
		n.SymbolTable = h.SymbolTable
		// The string table that follows the symbols has a length word of its own.
		if end := uint64(h.SymbolTable) + 18*uint64(h.Symbols) + 4; end > size && end-size < 1<<32 {
			n.OverlayAtLeast = max(n.OverlayAtLeast, end-size)
		}
	}
	// The checksum is a 16-bit sum plus the length: what it exceeds the length by
	// beyond 16 bits is overlay too.
	if c := uint64(h.CheckSum); c > size+0xffff && r.opt.FileSize == 0 {
		n.OverlayAtLeast = max(n.OverlayAtLeast, c-0xffff-size)
	}
	n.OverlayKnown = n.OverlayKnown || n.OverlayAtLeast > 0
}

// judgeSections sets the state of each section from the gaps in it.
func (r *Rebuilder) judgeSections() {
	f := r.fid
	sums := sumGaps(f.Gaps)
	f.Sections = make([]SectionFidelity, len(r.hdr.Sections))
	for i := range r.hdr.Sections {
		s := &r.hdr.Sections[i]
		sf := &f.Sections[i]
		*sf = SectionFidelity{Name: s.Name, RVA: s.VirtualAddress, RawOffset: s.RawOffset, RawSize: s.RawSize}
		from := min(uint64(s.RawOffset), uint64(len(r.data)))
		to := min(from+uint64(s.RawSize), uint64(len(r.data)))
		if s.RawSize == 0 || s.RawOffset == 0 || from >= to {
			sf.State = SectionNoData
			continue
		}
		before, upTo := sums.at(f.Gaps, from), sums.at(f.Gaps, to)
		sf.Missing, sf.Assumed, sf.Unknown = upTo[0]-before[0], upTo[1]-before[1], upTo[2]-before[2]
		switch {
		case sf.Missing+sf.Assumed >= to-from && sf.Missing > 0:
			sf.State = SectionAbsent
		case sf.Missing+sf.Unknown > 0:
			sf.State = SectionPartial
		case s.Writable() && !f.CheckSum.Matches && r.mayBeWritten(s):
			sf.State = SectionMemory
			f.writable += to - from
		case sf.Assumed > 0:
			sf.State = SectionAssumed
		default:
			sf.State = SectionExact
		}
	}
}

// gapClass sorts causes into missing, assumed, unknown and overlay.
func gapClass(c Cause) int {
	switch c {
	case CauseMissing:
		return 0
	case CauseUnmapped:
		return 1
	case CauseOverlay:
		return 3
	}
	return 2
}

// gapSums[i] are the bytes of gaps before gap i, by class: any number of sections
// may claim the same bytes, and each is to cost two searches.
type gapSums [][4]uint64

func sumGaps(gaps []Gap) gapSums {
	s := make(gapSums, len(gaps)+1)
	for i, g := range gaps {
		s[i+1] = s[i]
		s[i+1][gapClass(g.Cause)] += g.Len()
	}
	return s
}

// at returns the bytes in gaps before the file offset off.
func (s gapSums) at(gaps []Gap, off uint64) [4]uint64 {
	i, _ := slices.BinarySearchFunc(gaps, off, func(g Gap, at uint64) int {
		if g.End <= at {
			return -1
		}
		return 1
	})
	n := s[i]
	if i < len(gaps) && gaps[i].Start < off {
		n[gapClass(gaps[i].Cause)] += off - gaps[i].Start
	}
	return n
}

// mayBeWritten reports whether any file byte of a writable section can be one that the
// process wrote: those of the section's own pages cannot, and bytes that the cached
// file gave were not taken from the mapping.
func (r *Rebuilder) mayBeWritten(s *Section) bool {
	size := min(uint64(s.virtualSize()), uint64(s.RawSize))
	for at := uint64(0); at < size; {
		rva := uint64(s.VirtualAddress) + at
		n := min(PageSize-rva%PageSize, size-at)
		p := rva / PageSize
		if p >= uint64(len(r.img.Pages)) {
			return false
		}
		from := uint64(s.RawOffset) + at
		if r.written(p) && r.state[p]&pageSettled == 0 && !r.recoveredAll(from, from+n) {
			return true
		}
		at += n
	}
	return false
}

// written reports whether a page may hold what the process wrote, and not what the
// section has.
func (r *Rebuilder) written(page uint64) bool {
	switch r.img.Pages[page] {
	case Prototype, PagedIn, FileCache, OtherProcess, Absent:
		return false
	case Private:
		return true
	}
	return !r.img.PrivateKnown
}

// recoveredAll reports whether every byte of [from, to) came from elsewhere.
func (r *Rebuilder) recoveredAll(from, to uint64) bool {
	i, _ := slices.BinarySearchFunc(r.recovered, from, func(k Range, at uint64) int {
		if k.End <= at {
			return -1
		}
		return 1
	})
	for ; from < to && i < len(r.recovered) && r.recovered[i].Start <= from; i++ {
		from = max(from, r.recovered[i].End)
	}
	return from >= to
}
