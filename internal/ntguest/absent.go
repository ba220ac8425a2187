package ntguest

// pteSwizzle is _MMPTE_*.SwizzleBit: an invalid PTE that has it is not inverted.
const pteSwizzle = 1 << 4

// invalidPTEMask is what the memory manager inverts in an invalid PTE so that it
// names no frame that exists (the L1 terminal fault); MiState holds it. Zero on
// builds without.
func (b *builder) invalidPTEMask() uint64 {
	if b.build.Major < 10 || b.sizeof("_MI_SYSTEM_INFORMATION") == 0 {
		return 0
	}
	return 1 << 45
}

// trimmedProto decides, where absent pages are asked for, whether a page of a
// section is in no working set. Its prototype PTE is then one in transition, with
// the content still in a frame, or leads to the subsection: the page must be read
// from the file. The headers always stay.
func (b *builder) trimmedProto(im *image, page, pfn uint64) (pte uint64, trimmed bool) {
	if !b.opts.Absent || page == 0 || b.rng.Uint64N(8) != 0 {
		return 0, false
	}
	if im.trimmed == nil {
		im.trimmed = make(map[uint64]bool)
	}
	im.trimmed[page] = true
	prot := uint64(im.file.protAt(page)) << 5
	if b.rng.Uint64N(2) == 0 {
		return (pfn<<pageShift ^ b.invalidPTEMask()) | prot | pteTransition, true
	}
	im.frames[page] = 0
	delete(b.mem.frames, pfn)
	subsection := im.controlArea + b.sizeof("_CONTROL_AREA")
	for i, s := range im.file.spans() {
		if page >= s.start && page < s.end {
			subsection += b.sizeof("_SUBSECTION") * uint64(i)
		}
	}
	pte = subsection<<16 | prot | ptePrototype
	if b.invalidPTEMask() != 0 {
		pte |= pteSwizzle
	}
	return pte, true
}

// leaveOut decides whether a process lacks a shared page of an image: those that no
// process has, and some more of its own.
func (b *builder) leaveOut(im *image, page uint64) bool {
	if !b.opts.Absent || page == 0 {
		return false
	}
	return im.trimmed[page] || b.rng.Uint64N(8) == 0
}

// withoutAbsent is modules without what changes while the guest runs.
func withoutAbsent(modules []TruthModule) []TruthModule {
	out := append([]TruthModule(nil), modules...)
	for i := range out {
		out[i].Absent, out[i].Lost = nil, nil
	}
	return out
}
