package pe

import (
	"bytes"
	"fmt"
	"slices"
)

// pageState says what was done with the file bytes of one page.
type pageState uint8

const (
	pageSettled  pageState = 1 << iota // they are the section's, whatever the process has written
	pageReplaced                       // the process had others
)

// headers parses the headers of the image. It takes them from the mapping, or from the
// section's own page if the process has changed its copy, or from the cached file if
// neither is usable. If none is, it makes headers up from what else is known.
func (r *Rebuilder) headers() error {
	r.fid.Headers = HeadersMemory
	r.headerSource = r.memoryHeader()
	if shared := r.sharedHeader(); shared != nil {
		r.fid.Headers = HeadersShared
		r.headerSource = shared
	}
	err := r.parseHeaders()
	if err != nil && r.fid.Headers == HeadersShared {
		// The section's page is unusable, too. The process's copy may be usable.
		r.fid.Headers, r.headerSource = HeadersMemory, r.memoryHeader()
		err = r.parseHeaders()
	}
	if err != nil {
		if b := r.cachedHeader(); b != nil {
			r.headerSource = b
			if r.parseHeaders() == nil {
				r.fid.Headers = HeadersCache
				r.fid.Notes = append(r.fid.Notes, err.Error())
				err = nil
			}
		}
	}
	if err != nil {
		r.headerSource = r.memoryHeader()
		return r.substituteHeaders(err)
	}
	if r.fid.Headers != HeadersMemory && len(r.headerCopy) == 0 {
		h := &r.hdr
		end := max(uint64(h.SizeOfHeaders), uint64(h.sectTable)+uint64(len(h.Sections))*sectionHeaderSize)
		r.headerCopy = append(r.headerCopy, r.headerSource[:min(end, uint64(len(r.headerSource)))]...)
	}
	return nil
}

// parseHeaders parses headerSource, and undoes what the 64-bit loader does to the
// headers of .NET programs.
func (r *Rebuilder) parseHeaders() error {
	if len(r.headerSource) == 0 {
		return headersError("header page not present")
	}
	if err := r.hdr.parse(r.headerSource); err != nil {
		return err
	}
	if err := r.checkHeaders(); err != nil {
		return err
	}
	if r.rewrittenDotNet() {
		return r.undoDotNet()
	}
	return nil
}

// memoryHeader returns the present pages at the start of the image.
func (r *Rebuilder) memoryHeader() []byte {
	n := 0
	for n < len(r.img.Pages) && n < 64 && r.img.Pages[n] != Absent {
		n++
	}
	return r.img.Mem[:n*PageSize]
}

// sharedHeader returns memoryHeader with the section's own first page in place of the
// process's copy, or nil if they do not differ.
func (r *Rebuilder) sharedHeader() []byte {
	s := r.img.Shared
	if len(s) == 0 || s[0].Page != 0 || len(s[0].Data) != PageSize || bytes.Equal(s[0].Data, r.img.Mem[:PageSize]) {
		return nil
	}
	b := slices.Clone(r.memoryHeader())
	copy(b, s[0].Data)
	return b
}

// cachedHeader returns the start of the file from the guest's cache, or nil.
func (r *Rebuilder) cachedHeader() []byte {
	var b []byte
	for i := range r.opt.FilePages {
		p := &r.opt.FilePages[i]
		if p.Offset != uint64(len(b)) || len(b) >= 64*PageSize {
			break
		}
		b = append(b, p.Data[:min(len(p.Data), 64*PageSize-len(b))]...)
	}
	return b
}

// mergeShared compares the process's private copies of pages with the section's pages. In
// writable sections the section's bytes are the file's and replace the copy. Elsewhere a
// difference is a conflict, and the bytes that run are kept. It is called after everything
// that the loader did is undone, except relocations: the section's pages have those, too.
//
// If a process has mapped the image at another address than the section's, it has relocated
// the image itself. Then the two differ in every address, and nothing is merged.
func (r *Rebuilder) mergeShared() {
	if base := r.sectionBase(); base != 0 && base != r.img.Base && len(r.img.Shared) > 0 {
		r.fid.Notes = append(r.fid.Notes, fmt.Sprintf("relocated by the process: its section is at %#x", base))
		return
	}
	for i := range r.img.Shared {
		p := &r.img.Shared[i]
		if p.Page < 0 || p.Page >= len(r.img.Pages) || len(p.Data) != PageSize || r.img.Pages[p.Page] != Private {
			continue
		}
		rva := uint64(p.Page) * PageSize
		for at := rva; at < rva+PageSize; {
			s := r.lay.find(at)
			if s == nil {
				at = r.nextSpan(at, rva+PageSize)
				continue
			}
			end := min(rva+PageSize, s.rva+s.n)
			r.mergeSharedRun(s, at, p.Data[at-rva:end-rva])
			at = end
		}
	}
	r.dropGaps()
	if r.madeUp && r.img.PrivateKnown {
		r.doubtWritten()
	}
}

// doubtWritten is for images whose headers are lost, with which it could be told what the
// loader wrote. It records every page that is not the section's as in doubt.
func (r *Rebuilder) doubtWritten() {
	for _, s := range r.lay.spans {
		for rva := s.rva; s.sect >= 0 && rva < s.rva+s.n; {
			end := min(rva&^(PageSize-1)+PageSize, s.rva+s.n)
			p := rva / PageSize
			if o := r.img.Pages[p]; (o == Private || o == OtherProcess) && r.state[p]&pageSettled == 0 {
				r.unknown(s.off+rva-s.rva, s.off+end-s.rva, CauseWritten)
			}
			rva = end
		}
	}
}

// sectionBase returns the address that the section's pages are relocated to, from the
// header on its own first page, or 0 if that page is not there.
func (r *Rebuilder) sectionBase() uint64 {
	page := r.img.Mem[:PageSize]
	if s := r.img.Shared; len(s) > 0 && s[0].Page == 0 && len(s[0].Data) == PageSize {
		page = s[0].Data
	} else if r.written(0) || r.img.Pages[0] == Absent {
		return 0
	}
	h, err := ParseHeaders(page)
	if err != nil {
		return 0
	}
	return h.ImageBase
}

// nextSpan returns the first RVA from at on that belongs to a span, or end if there is none
// before it.
func (r *Rebuilder) nextSpan(at, end uint64) uint64 {
	i, _ := slices.BinarySearchFunc(r.lay.spans, at, func(s span, at uint64) int {
		if s.rva <= at {
			return -1
		}
		return 1
	})
	if i < len(r.lay.spans) {
		end = min(end, r.lay.spans[i].rva)
	}
	return end
}

// mergeSharedRun merges the part of a section's page that belongs to one span.
func (r *Rebuilder) mergeSharedRun(s *span, rva uint64, shared []byte) {
	off := s.off + rva - s.rva
	mem := r.data[off : off+uint64(len(shared))]
	if s.sect < 0 && r.fid.Headers != HeadersMemory {
		r.conflictingHeaders(s, rva, shared)
		return
	}
	writable := s.sect >= 0 && r.hdr.Sections[s.sect].Writable()
	if !writable && r.madeUp {
		// What the loader wrote here is not undone, because it looks the same as a patch.
		if writable = true; s.sect >= 0 && r.hdr.Sections[s.sect].Executable() {
			eachDifference(mem, shared, func(i, j int) { r.conflict(s, off+uint64(i), mem[i:j], shared[i:j], Prototype) })
		}
	}
	if writable {
		r.clean = append(r.clean, Range{off, off + uint64(len(shared))})
		r.state[rva/PageSize] |= pageSettled
		if !bytes.Equal(mem, shared) {
			copy(mem, shared)
			r.sumKnown = false
			r.state[rva/PageSize] |= pageReplaced
		}
		r.countShared(uint64(len(shared)))
		return
	}
	if bytes.Equal(mem, shared) {
		r.clean = append(r.clean, Range{off, off + uint64(len(shared))})
		r.countShared(uint64(len(shared)))
		return
	}
	slices.SortStableFunc(r.gaps, func(a, b Gap) int { return compareU64(a.Start, b.Start) })
	eachDifference(mem, shared, func(i, j int) {
		from, to := off+uint64(i), off+uint64(j)
		if !r.isGap(from, to) {
			r.conflict(s, from, mem[i:j], shared[i:j], Prototype)
			return
		}
		copy(mem[i:j], shared[i:j])
		r.sumKnown = false
		r.clean = append(r.clean, Range{from, to})
	})
}

// conflictingHeaders records the differences between the process's copy of the headers and
// the section's page, which is used in the file.
func (r *Rebuilder) conflictingHeaders(s *span, rva uint64, shared []byte) {
	mem := r.img.Mem[rva : rva+uint64(len(shared))]
	eachDifference(mem, shared, func(i, j int) {
		r.conflict(s, s.off+rva-s.rva+uint64(i), mem[i:j], shared[i:j], Prototype)
	})
}

// countShared counts n bytes of a private page as the section's.
func (r *Rebuilder) countShared(n uint64) {
	b := &r.fid.Bytes
	n = min(n, b.Private)
	b.Private, b.Prototype = b.Private-n, b.Prototype+n
}

// dropGaps removes from the gaps the bytes that are known from the section's pages.
func (r *Rebuilder) dropGaps() {
	if len(r.clean) == 0 || len(r.gaps) == 0 {
		return
	}
	slices.SortFunc(r.clean, func(a, b Range) int { return compareU64(a.Start, b.Start) })
	out := make([]Gap, 0, len(r.gaps))
	for _, g := range r.gaps {
		i, _ := slices.BinarySearchFunc(r.clean, g.Start, func(c Range, at uint64) int {
			if c.End <= at {
				return -1
			}
			return 1
		})
		for ; g.Start < g.End; i++ {
			if i == len(r.clean) || r.clean[i].Start >= g.End {
				out = append(out, g)
				break
			}
			if r.clean[i].Start > g.Start {
				out = append(out, Gap{Range{g.Start, r.clean[i].Start}, g.Cause})
			}
			g.Start = max(g.Start, r.clean[i].End)
		}
	}
	r.gaps = out
}

// memoryOnly lists the executable pages whose bytes are not in the rebuilt file: code that
// a program has unpacked, or has written over the file's code.
func (r *Rebuilder) memoryOnly() {
	for _, c := range r.lay.code {
		for p := c.Start / PageSize; p*PageSize < c.End && p < uint64(len(r.img.Pages)); p++ {
			if !r.written(p) || r.state[p]&pageReplaced == 0 && !r.beyondFile(p) {
				continue
			}
			out := r.fid.MemoryOnly
			if n := len(out); n > 0 && out[n-1].End >= p*PageSize {
				out[n-1].End = max(out[n-1].End, (p+1)*PageSize)
			} else {
				r.fid.MemoryOnly = append(out, Range{p * PageSize, (p + 1) * PageSize})
			}
		}
	}
}

// beyondFile reports whether a page has content where the file has no bytes.
func (r *Rebuilder) beyondFile(page uint64) bool {
	rva := page * PageSize
	for at := rva; at < rva+PageSize; {
		if s := r.lay.find(at); s != nil {
			at = min(rva+PageSize, s.rva+s.n)
			continue
		}
		end := r.nextSpan(at, rva+PageSize)
		if !isZero(r.img.Mem[at:end]) {
			return true
		}
		at = end
	}
	return false
}
