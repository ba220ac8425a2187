package ntguest

import "strings"

// Memory manager protections, as VADs and PTEs hold them; MmProtectToValue
// translates them to PAGE_* constants.
const (
	mmReadOnly         = 1
	mmExecuteRead      = 3
	mmReadWrite        = 4
	mmWriteCopy        = 5
	mmExecuteReadWrite = 6
	mmExecuteWriteCopy = 7
	mmNoAccess         = 0x18
)

// pageProtect is the PAGE_* constant of a protection.
var pageProtect = map[int]uint32{mmReadOnly: 0x02, 2: 0x10, mmExecuteRead: 0x20, mmReadWrite: 0x04,
	mmWriteCopy: 0x08, mmExecuteReadWrite: 0x40, mmExecuteWriteCopy: 0x80, mmNoAccess: 0x01}

// protection is what an image section's pages may be used for.
func (s peSection) protection() int {
	execute, write := s.flags&0x20000000 != 0, s.flags&0x80000000 != 0
	switch {
	case execute && write:
		return mmExecuteWriteCopy
	case execute:
		return mmExecuteRead
	case write:
		return mmWriteCopy
	}
	return mmReadOnly
}

// span is a run of an image's pages with one protection: the headers, or a section.
type span struct {
	start, end   uint64 // pages
	prot         int
	raw, rawSize uint64
}

// spans divides an image as the memory manager does: one subsection for the headers,
// one for each section.
func (f *peFile) spans() []span {
	if f.flat { // sections aligned below the page size: one piece, which anybody may write to and execute
		return []span{{0, f.size / pageSize, mmExecuteWriteCopy, 0, uint64(len(f.data))}}
	}
	out := []span{{0, (f.headers + pageSize - 1) / pageSize, mmReadOnly, 0, f.headers}}
	if len(f.sections) > 0 {
		out[0].end = f.sections[0].rva / pageSize
	} else {
		out[0].end = f.size / pageSize
	}
	for i, s := range f.sections {
		end := f.size / pageSize
		if i+1 < len(f.sections) {
			end = f.sections[i+1].rva / pageSize
		}
		size := s.rawSize
		if s.raw == 0 {
			size = 0 // whatever it says: nothing of it is in the file
		}
		out = append(out, span{s.rva / pageSize, end, s.protection(), s.raw, size})
	}
	return out
}

// protAt is the protection of one page of the image.
func (f *peFile) protAt(page uint64) int {
	for _, s := range f.spans() {
		if page >= s.start && page < s.end {
			return s.prot
		}
	}
	return mmNoAccess
}

// newFileObject makes a FILE_OBJECT for a path on the guest's volume.
func (b *builder) newFileObject(path string) uint64 {
	va := b.newObject("File", "", b.sizeof("_FILE_OBJECT"), 0)
	o := b.at("_FILE_OBJECT", va)
	o.set(5, "Type") // IO_TYPE_FILE
	o.set(b.sizeof("_FILE_OBJECT"), "Size")
	o.set(b.files.volume, "DeviceObject")
	o.set(1, "ReadAccess")
	o.set(1, "SharedRead")
	o.set(1, "SharedDelete")
	o.set(0x44042, "Flags")
	o.ustr(b.poolAlloc(utf16size(path), "IoNm", true), path, "FileName")
	return va
}

// buildSection makes the section object of an image: FILE_OBJECT, CONTROL_AREA with
// its SUBSECTIONs, SEGMENT and prototype PTEs, with every page resident.
func (fs *files) buildSection(im *image) {
	b := fs.b
	pages := uint64(len(im.content)) / pageSize
	spans := im.file.spans()

	im.fileObject = b.newFileObject(im.path)
	caSize, subSize := b.sizeof("_CONTROL_AREA"), b.sizeof("_SUBSECTION")
	im.controlArea = b.poolAlloc(caSize+subSize*uint64(len(spans)), "MmCi", false)
	segment := b.poolAlloc(b.sizeof("_SEGMENT"), "MmSm", true)
	im.proto = b.poolAlloc(b.pte*pages, "MmSt", true)

	sop := b.poolAlloc(b.sizeof("_SECTION_OBJECT_POINTERS"), "FSro", false)
	b.at("_SECTION_OBJECT_POINTERS", sop).set(im.controlArea, "ImageSectionObject")
	b.at("_FILE_OBJECT", im.fileObject).set(sop, "SectionObjectPointer")

	ca := b.at("_CONTROL_AREA", im.controlArea)
	ca.set(segment, "Segment")
	ca.set(im.fileObject|3, "FilePointer") // EX_FAST_REF: the low bits count references
	ca.set(1, "NumberOfSectionReferences")
	ca.set(1, "NumberOfMappedViews")
	ca.set(pages, "NumberOfPfnReferences")
	flags := b.at("_MMSECTION_FLAGS", ca.addr("u.Flags"))
	flags.set(1, "Image")
	flags.set(1, "File")

	sg := b.at("_SEGMENT", segment)
	sg.set(im.controlArea, "ControlArea")
	sg.set(pages, "TotalNumberOfPtes")
	sg.set(pages*pageSize, "SizeOfSegment")
	sg.set(im.base, "BasedAddress")
	sg.set(im.proto, "PrototypePte")

	for i, s := range spans {
		va := im.controlArea + caSize + subSize*uint64(i)
		o := b.at("_SUBSECTION", va)
		o.set(im.controlArea, "ControlArea")
		o.set(im.proto+b.pte*s.start, "SubsectionBase")
		if i+1 < len(spans) {
			o.set(va+subSize, "NextSubsection")
		}
		o.set(s.raw/512, "StartingSector")
		o.set(s.rawSize/512, "NumberOfFullSectors")
		o.set(s.end-s.start, "PtesInSubsection")
		sub := b.at("_MMSUBSECTION_FLAGS", o.addr("u.SubsectionFlags", "SubsectionFlags"))
		sub.set(s.rawSize%512, "SectorEndOffset")
		sub.opt(uint64(s.prot), "Protection")
	}
	im.frames = make([]uint64, pages)
	for i := range pages {
		pfn := b.mem.alloc()
		copy(b.mem.frame(pfn)[:], im.content[i*pageSize:])
		im.frames[i] = pfn
		if pte, ok := b.trimmedProto(im, i, pfn); ok {
			b.kernel.put(im.proto+b.pte*i, pte, uint32(b.pte))
			continue
		}
		pte := pfn<<pageShift | pteValid | pteUser | pteAccessed
		switch im.file.protAt(i) {
		case mmWriteCopy:
			pte |= pteCOW | pteNX
		case mmExecuteWriteCopy:
			pte |= pteCOW
		case mmReadOnly:
			pte |= pteNX
		}
		b.kernel.put(im.proto+b.pte*i, pte, uint32(b.pte))
	}
	im.segment = len(fs.segments)
	fs.segments = append(fs.segments, BootSegment{Proto: im.proto, Count: pages})
	fs.backing = append(fs.backing, nil)
	im.section = b.newSectionObject(im)
	if b.opts.FileCache {
		b.cacheFile(im, sop)
	}
}

// newSectionObject makes the SECTION object that a process is created from.
func (b *builder) newSectionObject(im *image) uint64 {
	size := b.sizeof("_SECTION")
	if size == 0 {
		size = b.sizeof("_SECTION_OBJECT")
	}
	va := b.newObject("Section", "", size, 0)
	if b.sizeof("_SECTION") != 0 {
		o := b.at("_SECTION", va)
		o.set(im.controlArea, "u1.ControlArea")
		o.set(uint64(len(im.content)), "SizeOfSection")
		b.at("_MMSECTION_FLAGS", o.addr("u.Flags")).set(1, "Image")
		return va
	}
	// Windows 7: the pointer that the symbols name Segment leads to a structure that
	// they leave out, with the SEGMENT first.
	inner := b.poolAlloc(8, "MmSi", true)
	b.kernel.put(inner, b.at("_CONTROL_AREA", im.controlArea).get("Segment"), b.ptr())
	b.at("_SECTION_OBJECT", va).set(inner, "Segment")
	return va
}

// baseName is the last part of a guest path.
func baseName(path string) string { return path[strings.LastIndexByte(path, '\\')+1:] }
