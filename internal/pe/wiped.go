package pe

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// Layout is the raw layout of an image as the guest's section object has it. When the
// section was made, the memory manager recorded the headers' content in the subsections of
// the control area. That record does not change, whatever a process does to its copy of the
// headers.
type Layout struct {
	Machine       uint16 // 0 if not known
	PE64          bool
	EntryPoint    uint32 // RVA, 0 if not known
	SizeOfHeaders uint32 // bytes; 0 if not known
	Sections      []Section
}

// matches reports whether the section table of h agrees with the layout: every section
// with bytes in the file has a subsection at its address that takes them from the same
// sector. The raw size may have been cut to what is mapped.
func (l *Layout) matches(h *Headers) bool {
	last, budget := len(l.Sections)-1, 16*(len(h.Sections)+len(l.Sections)) // tables in any order cost no more than a few passes
	for i := range h.Sections {
		s := &h.Sections[i]
		if s.RawSize == 0 || s.RawOffset == 0 {
			continue
		}
		n := len(l.Sections)
		var x *Section
		for k := 1; k <= n && x == nil; k++ {
			if budget--; budget < 0 {
				return false
			}
			if j := (last + k) % n; l.Sections[j].VirtualAddress == s.VirtualAddress {
				x, last = &l.Sections[j], j
			}
		}
		if x == nil {
			return false
		}
		mapped := alignUp(uint64(s.virtualSize()), PageSize)
		if x.RawOffset&^(sectorSize-1) != s.RawOffset&^(sectorSize-1) ||
			x.RawSize != s.RawSize && uint64(x.RawSize) != min(uint64(s.RawSize), mapped) {
			return false
		}
	}
	return true
}

// checkHeaders returns why parsed headers cannot be those with which the image was mapped,
// or nil.
func (r *Rebuilder) checkHeaders() error {
	h := &r.hdr
	if r.opt.Layout != nil && !h.lowAlignment() && !r.opt.Layout.matches(h) {
		return headersError("section table contradicts the section object")
	}
	if len(h.Sections) == 0 && !h.lowAlignment() {
		return headersError("no sections")
	}
	if h.lowAlignment() {
		return nil
	}
	inside := 0
	for i := range h.Sections {
		if uint64(h.Sections[i].VirtualAddress) < uint64(len(r.img.Mem)) {
			inside++
		}
	}
	if inside == 0 {
		return headersError("no section inside the image")
	}
	return nil
}

// substituteHeaders replaces unusable headers: by a repaired copy of them, by the section
// object's layout, or by a flat copy.
func (r *Rebuilder) substituteHeaders(cause error) error {
	r.fid.Notes = append(r.fid.Notes, cause.Error())
	if r.img.Pages[0] != Absent && r.repairHeaders() {
		r.fid.Headers = HeadersAnalysis
		if r.opt.Layout != nil {
			r.fid.Headers = HeadersLayout
		}
		r.fid.Notes = append(r.fid.Notes, "signatures of the headers restored, the section table stands")
		return nil
	}
	if l := r.opt.Layout; l != nil && len(l.Sections) > 0 && len(l.Sections) <= maxSections {
		r.fid.Headers = HeadersLayout
		if err := r.headersFromLayout(l); err != nil {
			return err
		}
		r.findRelocations()
		return nil
	}
	r.fid.Headers = HeadersAnalysis
	machine, pe64 := uint16(machineI386), false
	if !r.opt.PE32 {
		machine, pe64 = guessMachine(r.img)
	}
	return r.headersFromLayout(&Layout{
		Machine: machine, PE64: pe64, SizeOfHeaders: PageSize,
		Sections: []Section{{
			Name: ".image", VirtualAddress: PageSize,
			VirtualSize: clampU32(uint64(len(r.img.Mem)) - min(PageSize, uint64(len(r.img.Mem)))),
			RawOffset:   PageSize, RawSize: clampU32(uint64(len(r.img.Mem)) - min(PageSize, uint64(len(r.img.Mem)))),
			Characteristics: scnCode | scnExecute | scnRead,
		}},
	})
}

func clampU32(v uint64) uint32 {
	return uint32(min(v, 1<<32-PageSize))
}

// repairHeaders looks for headers that lost only what makes them easy to find: "MZ",
// e_lfanew and "PE". It recognises a file header if its machine fits the optional header's
// magic and size.
func (r *Rebuilder) repairHeaders() bool {
	src := r.headerSource
	le := binary.LittleEndian
	for nt := 0x40; nt+4+fileHeaderSize+0xf0 <= min(len(src), PageSize); nt += 4 {
		fh := src[nt+4:]
		magic, want := uint16(magicPE32), uint16(0xe0)
		switch le.Uint16(fh) {
		case machineAMD64, machineARM64:
			magic, want = magicPE32Plus, 0xf0
		case machineI386, machineARMNT:
		default:
			continue
		}
		if le.Uint16(fh[16:]) != want || le.Uint16(fh[fileHeaderSize:]) != magic {
			continue
		}
		r.headerCopy = append(r.headerCopy[:0], src...)
		c := r.headerCopy
		c[0], c[1] = 'M', 'Z'
		le.PutUint32(c[0x3c:], uint32(nt))
		le.PutUint32(c[nt:], 0x4550)
		if r.hdr.parse(c) == nil && r.checkHeaders() == nil {
			end := max(uint64(r.hdr.SizeOfHeaders), uint64(r.hdr.sectTable)+uint64(len(r.hdr.Sections))*sectionHeaderSize)
			r.headerCopy = c[:min(end, uint64(len(c)))]
			r.fid.Bytes.Reconstructed += 10
			r.unknownHeader = append(r.unknownHeader[:0], Range{0, 2}, Range{0x3c, 0x40}, Range{uint64(nt), uint64(nt) + 4})
			return true
		}
	}
	r.headerCopy = r.headerCopy[:0]
	return false
}

// headersFromLayout makes headers that describe the layout, so that a scanner
// finds the sections where the file has them.
func (r *Rebuilder) headersFromLayout(l *Layout) error {
	le := binary.LittleEndian
	const nt = 0x80
	opt := 0xe0
	if l.PE64 {
		opt = 0xf0
	}
	table := nt + 4 + fileHeaderSize + opt
	size := table + len(l.Sections)*sectionHeaderSize
	if size > len(r.img.Mem) {
		return fmt.Errorf("make headers for %d sections: %w", len(l.Sections), ErrHeaders)
	}
	r.madeUp = true
	b := slices.Grow(r.headerCopy[:0], size)[:size]
	clear(b)
	r.headerCopy = b
	b[0], b[1] = 'M', 'Z'
	le.PutUint32(b[0x3c:], nt)
	le.PutUint32(b[nt:], 0x4550)
	fh := b[nt+4:]
	machine := l.Machine
	if machine == 0 {
		if machine = machineI386; l.PE64 {
			machine = machineAMD64
		}
	}
	le.PutUint16(fh, machine)
	le.PutUint16(fh[2:], uint16(len(l.Sections)))
	le.PutUint16(fh[16:], uint16(opt))
	le.PutUint16(fh[18:], 0x0002)
	o := fh[fileHeaderSize:]
	if l.PE64 {
		le.PutUint16(o, magicPE32Plus)
		le.PutUint64(o[24:], r.img.Base)
		le.PutUint32(o[108:], numDirs)
	} else {
		le.PutUint16(o, magicPE32)
		le.PutUint32(o[28:], uint32(r.img.Base))
		le.PutUint32(o[92:], numDirs)
	}
	le.PutUint32(o[16:], l.EntryPoint)
	le.PutUint32(o[32:], PageSize)
	le.PutUint32(o[36:], sectorSize)
	le.PutUint32(o[56:], clampU32(uint64(len(r.img.Mem))))
	headers := l.SizeOfHeaders
	if uint64(headers) < uint64(size) {
		headers = uint32(alignUp(uint64(size), sectorSize))
	}
	le.PutUint32(o[60:], headers)
	for i, s := range l.Sections {
		e := b[table+i*sectionHeaderSize:]
		copy(e[:8], s.Name)
		le.PutUint32(e[8:], s.VirtualSize)
		le.PutUint32(e[12:], s.VirtualAddress)
		le.PutUint32(e[16:], s.RawSize)
		le.PutUint32(e[20:], s.RawOffset)
		le.PutUint32(e[36:], s.Characteristics)
	}
	if err := r.hdr.parse(b); err != nil {
		return err
	}
	r.fid.Bytes.Reconstructed += uint64(size)
	r.unknownHeader = append(r.unknownHeader[:0], Range{0, uint64(size)})
	return nil
}

// writeHeaders puts repaired or made-up headers into the file.
func (r *Rebuilder) writeHeaders() {
	if len(r.headerCopy) == 0 {
		return
	}
	copy(r.data, r.headerCopy)
	for _, u := range r.unknownHeader {
		// These bytes are no longer the zeros of a missing page.
		if u.End = min(u.End, uint64(len(r.data))); r.isGap(u.Start, u.End) {
			r.derived += u.Len()
		}
		r.clean = append(r.clean, u)
	}
	r.dropGaps()
	r.clean = r.clean[:0]
	for _, u := range r.unknownHeader {
		r.unknown(u.Start, min(u.End, uint64(len(r.data))), CauseHeader)
	}
}

// guessMachine decides between x86 and x64 by counting REX.W prefixed loads and
// stores, the most frequent instructions of x64 code, in a sample.
func guessMachine(img *Image) (uint16, bool) {
	rex, n := 0, 0
	for p := 0; p < len(img.Pages) && n < 1<<20; p++ {
		if img.Pages[p] == Absent {
			continue
		}
		m := img.Mem[p*PageSize : (p+1)*PageSize]
		for i := 0; i+1 < len(m); i++ {
			if m[i]&0xf8 == 0x48 && (m[i+1] == 0x8b || m[i+1] == 0x89 || m[i+1] == 0x8d) {
				rex++
			}
		}
		n += len(m)
	}
	if n > 0 && rex*2000 > n {
		return machineAMD64, true
	}
	return machineI386, false
}
