package ntguest

// viewSize is the size of a cache manager's view of a file
// (VACB_MAPPING_GRANULARITY).
const viewSize = 256 << 10

// cacheFile lays out what a guest has in memory of a file that was read before it was
// mapped: the data section with a prototype PTE for each 4 KiB of the file, and the
// cache manager's views of it. Files have both, or one of them, or none.
func (b *builder) cacheFile(im *image, pointers uint64) {
	size := uint64(len(im.file.data))
	pages := (size + pageSize - 1) / pageSize
	kind := im.segment % 7
	im.cached = make([]bool, pages)
	if kind == 6 {
		return
	}
	frames := make([]uint64, pages)
	for i := range frames {
		if b.opts.Trim > 0 && b.rng.Uint64N(100) < uint64(b.opts.Trim) {
			continue
		}
		frames[i] = b.mem.alloc()
		copy(b.mem.frame(frames[i])[:], im.file.data[uint64(i)*pageSize:])
	}
	protos := b.dataProtos(frames)
	o := b.at("_SECTION_OBJECT_POINTERS", pointers)
	if kind != 5 {
		o.set(b.dataSection(im, protos, size), "DataSectionObject")
		for i, pfn := range frames {
			im.cached[i] = pfn != 0
		}
	}
	if kind != 4 {
		o.set(b.cacheMap(im, protos, frames, size), "SharedCacheMap")
		for i, pfn := range frames {
			im.cached[i] = pfn != 0
		}
	}
}

// dataProtos makes the prototype PTEs of a file's pages: valid, in transition, or zero
// where the page is not in memory.
func (b *builder) dataProtos(frames []uint64) uint64 {
	protos := b.poolAlloc(b.pte*uint64(len(frames)), "MmSt", true)
	for i, pfn := range frames {
		var pte uint64
		switch {
		case pfn == 0:
		case b.rng.Uint64N(4) == 0:
			pte = b.transition(pfn, mmReadWrite)
		default:
			pte = pfn<<pageShift | pteValid | pteAccessed | pteNX
		}
		b.kernel.put(protos+b.pte*uint64(i), pte, uint32(b.pte))
	}
	return protos
}

// dataSection makes the control area of a file mapped as data. Its subsections count
// the file in blocks of 4 KiB; a file that has grown has more than one, and so have
// the larger ones here.
func (b *builder) dataSection(im *image, protos, size uint64) uint64 {
	pages := (size + pageSize - 1) / pageSize
	msub := max(b.sizeof("_MSUBSECTION"), b.sizeof("_SUBSECTION"))
	ca := b.poolAlloc(b.sizeof("_CONTROL_AREA")+msub, "MmCa", false)
	segment := b.poolAlloc(b.sizeof("_SEGMENT"), "MmSm", true)
	o := b.at("_CONTROL_AREA", ca)
	o.set(segment, "Segment")
	o.set(im.fileObject|5, "FilePointer")
	o.set(pages, "NumberOfPfnReferences")
	b.at("_MMSECTION_FLAGS", o.addr("u.Flags")).set(1, "File")
	sg := b.at("_SEGMENT", segment)
	sg.set(ca, "ControlArea")
	sg.set(pages, "TotalNumberOfPtes")
	sg.set(size, "SizeOfSegment")
	parts := []uint64{0, pages}
	if pages > 16 {
		parts = []uint64{0, pages / 3, pages}
	}
	at := ca + b.sizeof("_CONTROL_AREA")
	for i := 0; i+1 < len(parts); i++ {
		first, end := parts[i], min(parts[i+1]*pageSize, size)
		s := b.at("_SUBSECTION", at)
		s.set(ca, "ControlArea")
		s.set(protos+b.pte*first, "SubsectionBase")
		s.set(first, "StartingSector")
		s.set((end-first*pageSize)/pageSize, "NumberOfFullSectors")
		s.set(parts[i+1]-first, "PtesInSubsection")
		f := b.at("_MMSUBSECTION_FLAGS", s.addr("u.SubsectionFlags", "SubsectionFlags"))
		f.set((end-first*pageSize)%pageSize, "SectorEndOffset")
		f.opt(mmExecuteReadWrite, "Protection")
		if i+2 < len(parts) {
			at = b.poolAlloc(msub, "MmSb", false)
			s.set(at, "NextSubsection")
		}
	}
	return ca
}

// cacheMap makes the SHARED_CACHE_MAP of a file with a VACB for each of its views. In
// a view, pages are mapped or lead to the prototype PTE.
func (b *builder) cacheMap(im *image, protos uint64, frames []uint64, size uint64) uint64 {
	va := b.poolAlloc(b.sizeof("_SHARED_CACHE_MAP"), "CcSc", false)
	o := b.at("_SHARED_CACHE_MAP", va)
	o.set(0x2ff, "NodeTypeCode") // CACHE_NTC_SHARED_CACHE_MAP
	o.set(1, "OpenCount")
	section := (size + viewSize - 1) &^ (viewSize - 1)
	for _, f := range []struct {
		name string
		v    uint64
	}{{"FileSize", size}, {"SectionSize", section}, {"ValidDataLength", size}} {
		b.kernel.put(o.addr(f.name), f.v, 8)
	}
	views := section / viewSize
	array := o.addr("InitialVacbs")
	if views > 4 {
		array = b.poolAlloc(b.word()*views, "CcVp", false)
	}
	o.set(array, "Vacbs")
	for v := range views {
		base := b.system.reserve(viewSize, viewSize)
		for i := range uint64(viewSize / pageSize) {
			page := v*(viewSize/pageSize) + i
			if page >= uint64(len(frames)) {
				break
			}
			// Without PAE an entry has no room for the prototype's address; see protoPTE.
			if frames[page] != 0 && (b.rng.Uint64N(2) == 0 || b.pte == 4) {
				b.kernel.mapFrame(base+i*pageSize, frames[page], b.system.bits)
			} else {
				b.kernel.setPTE(base+i*pageSize, b.protoPTE(protos+b.pte*page, page))
			}
		}
		vacb := b.poolAlloc(b.sizeof("_VACB"), "CcVa", false)
		c := b.at("_VACB", vacb)
		c.set(base, "BaseAddress")
		c.set(va, "SharedCacheMap")
		b.at("", 0).ptr(array+b.word()*v, vacb)
	}
	return va
}
