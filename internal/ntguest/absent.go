package ntguest

// pteSwizzle is _MMPTE_*.SwizzleBit: an invalid PTE that has it is not inverted.
const pteSwizzle = 1 << 4

// invalidPTEMask returns the bits that the memory manager inverts in an invalid PTE, so
// that it refers to no existing frame (against the L1 terminal fault); MiState has it. It
// is 0 on builds that invert nothing.
func (b *builder) invalidPTEMask() uint64 {
	if b.build.Major < 10 || b.sizeof("_MI_SYSTEM_INFORMATION") == 0 {
		return 0
	}
	return 1 << 45
}

// trims decides at random whether a page is trimmed: one in eight with Options.Absent, or
// the share in Options.Trim. With Options.Absent, headers are never trimmed.
func (b *builder) trims(page uint64) bool {
	if b.opts.Trim > 0 {
		return b.rng.Uint64N(100) < uint64(b.opts.Trim)
	}
	return b.opts.Absent && page != 0 && b.rng.Uint64N(8) == 0
}

// trimmedProto decides, if absent pages are wanted, whether a page of a section is in no
// working set. Its prototype PTE is then in transition, with the content still in a frame,
// or refers to the subsection: the page must be read from the file.
func (b *builder) trimmedProto(im *image, page, pfn uint64) (pte uint64, trimmed bool) {
	if !b.trims(page) {
		return 0, false
	}
	if im.trimmed == nil {
		im.trimmed = make(map[uint64]bool)
	}
	im.trimmed[page] = true
	prot := im.file.protAt(page)
	if b.rng.Uint64N(2) == 0 {
		return b.transition(pfn, prot), true
	}
	im.frames[page] = 0
	delete(b.mem.frames, pfn)
	return b.filePTE(im, page), true
}

// filePTE is the prototype PTE of a page that must be read from the file: it leads to
// the page's subsection.
func (b *builder) filePTE(im *image, page uint64) uint64 {
	subsection := im.controlArea + b.sizeof("_CONTROL_AREA")
	for i, s := range im.file.spans() {
		if page >= s.start && page < s.end {
			subsection += b.sizeof("_SUBSECTION") * uint64(i)
		}
	}
	if b.plainPointers(page) {
		return subsection
	}
	return b.subsectionPTE(subsection, im.file.protAt(page))
}

// leaveOut decides whether a process lacks a shared page of an image. Some pages are lacked
// by all processes, and each process lacks some more.
func (b *builder) leaveOut(im *image, page uint64) bool {
	return im.trimmed[page] || b.trims(page)
}

// leaveOutPTE is the entry of a page that a process does not have: none, where the
// address space descriptor tells the rest, or with Options.Trim at times one that
// leads to the section's prototype entry.
func (u *userSpace) leaveOutPTE(im *image, page uint64) {
	va := im.base + page*pageSize
	u.absent = append(u.absent, va)
	if u.b.opts.Trim == 0 || u.b.rng.Uint64N(2) == 0 {
		return
	}
	u.s.setPTE(va, u.b.protoPTE(im.proto+u.b.pte*page, page))
}

// notInverted returns the bit that marks an invalid PTE as not inverted, on builds that
// invert.
func (b *builder) notInverted() uint64 {
	if b.invalidPTEMask() != 0 {
		return pteSwizzle
	}
	return 0
}

// trimPrivate trims, with Options.Trim, a private copy of a page: into transition, or into
// the page file, from which no reader can get it.
func (u *userSpace) trimPrivate(im *image, page, pfn uint64, prot int) (trimmed bool) {
	b := u.b
	if b.opts.Trim == 0 || !b.trims(page) {
		return false
	}
	va := im.base + page*pageSize
	u.absent = append(u.absent, va)
	if b.rng.Uint64N(2) == 0 {
		u.own[va] = true
		u.s.setPTE(va, b.transition(pfn, prot))
		return true
	}
	u.own[va] = false
	delete(b.mem.frames, pfn)
	u.s.setPTE(va, b.pagefilePTE(0x1000+b.rng.Uint64N(1<<16), prot))
	return true
}

// withoutAbsent returns the modules without the fields that change while the guest runs.
func withoutAbsent(modules []TruthModule) []TruthModule {
	out := append([]TruthModule(nil), modules...)
	for i := range out {
		out[i].Absent, out[i].Lost = nil, nil
	}
	return out
}

// transition is the entry of a page that is in memory and in no working set.
func (b *builder) transition(pfn uint64, prot int) uint64 {
	return pfn<<pageShift ^ b.invalidPTEMask() | uint64(prot)<<5 | pteTransition
}

// plainPointers decides whether the entry of a page holds an address as it is. Since 22621
// entries of pages that are in a file do so at times (MemProcFS, mm_win.c). Which of them is
// not known: here it is every other page.
func (b *builder) plainPointers(page uint64) bool { return b.build.Number >= 22621 && page%2 == 1 }

// protoPTE returns the entry of a page that refers to a prototype entry. On x86 without PAE an entry
// has no room for its address: this one says that the address space descriptor has it
// (MI_PTE_LOOKUP_NEEDED).
func (b *builder) protoPTE(proto, page uint64) uint64 {
	if b.plainPointers(page) {
		return proto
	}
	return b.shifted(proto, 0xfffff) | ptePrototype | b.notInverted()
}

// subsectionPTE is a prototype entry whose page must be read from its file. The form without
// PAE spreads 27 bits of the address over two fields, counted from the end of nonpaged pool;
// nothing but the memory manager reads it, so that it is left out here.
func (b *builder) subsectionPTE(subsection uint64, prot int) uint64 {
	return b.shifted(subsection, 0) | uint64(prot)<<5 | ptePrototype | b.notInverted()
}

// shifted returns an address as it is in a field of a 64-bit entry, or the value that a
// 32-bit entry has there.
func (b *builder) shifted(address, without uint64) uint64 {
	switch {
	case b.pae():
		return address << 32
	case b.x86():
		return without << pageShift
	}
	return address << 16
}

// pagefilePTE returns the entry of a page that is in a page file.
func (b *builder) pagefilePTE(page uint64, prot int) uint64 {
	shift := 32
	if b.pte == 4 {
		shift = pageShift
	}
	return page<<shift | uint64(prot)<<5 | b.notInverted()
}
