package introspect

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// peHeader is a copy of the first page of a PE image in memory, which holds its headers
// (Microsoft, "PE Format"). Every offset in it stays inside the page and every RVA that
// it hands out inside the image.
type peHeader struct {
	as    *AddressSpace
	base  uint64 // address of the image
	size  uint32 // SizeOfImage, bytes
	page  [pageSize]byte
	nt    int // offset of the signature "PE"
	dirs  int // offset of the data directories
	table int // offset of the section table
}

// Data directories, by their index.
const (
	dirExport = 0
	dirDebug  = 6
)

// readPEHeader reads the headers of the image at base.
func readPEHeader(as *AddressSpace, base uint64) (*peHeader, error) {
	h := &peHeader{as: as, base: base}
	if err := as.Read(h.page[:], base); err != nil {
		return nil, err
	}
	if h.page[0] != 'M' || h.page[1] != 'Z' {
		return nil, fmt.Errorf("no image at %#x", base)
	}
	// The signature, the file header and the longer form of the optional header.
	const ntSize = 4 + 20 + 240
	nt := h.u32(0x3c)
	if nt > pageSize-ntSize-8 || !bytes.Equal(h.page[nt:nt+4], []byte("PE\x00\x00")) {
		return nil, fmt.Errorf("image at %#x has no PE header", base)
	}
	h.nt = int(nt)
	optional := h.nt + 24
	switch h.u16(optional) {
	case 0x20b:
		h.dirs = optional + 112
	case 0x10b:
		h.dirs = optional + 96
	default:
		return nil, fmt.Errorf("image at %#x has no optional header", base)
	}
	h.size = h.u32(optional + 56)
	h.table = optional + int(h.u16(h.nt+20))
	return h, nil
}

func (h *peHeader) u16(off int) uint16 { return binary.LittleEndian.Uint16(h.page[off:]) }
func (h *peHeader) u32(off int) uint32 { return binary.LittleEndian.Uint32(h.page[off:]) }

// directory is the RVA and the size of a data directory. ok is false where it is not
// there, is shorter than need or does not lie in the image.
func (h *peHeader) directory(index int, need uint32) (rva, size uint32, ok bool) {
	at := h.dirs + 8*index
	rva, size = h.u32(at), h.u32(at+4)
	if rva == 0 || size < need || rva >= h.size || uint64(rva)+uint64(size) > uint64(h.size) {
		return 0, 0, false
	}
	return rva, size, true
}

// read fills p from an RVA of the image.
func (h *peHeader) read(p []byte, rva uint64) error {
	if rva+uint64(len(p)) > uint64(h.size) {
		return fmt.Errorf("RVA %#x is outside the image", rva)
	}
	return h.as.Read(p, h.base+rva)
}

// peSection is what the section table says of one section.
type peSection struct {
	rva, size uint64 // in memory
	flags     uint32 // Characteristics
}

// end is the RVA behind the section.
func (s peSection) end() uint64 { return s.rva + s.size }

func (s peSection) writable() bool { return s.flags>>31 != 0 } // IMAGE_SCN_MEM_WRITE

// sections are the entries of the section table that lie in the first page.
func (h *peHeader) sections() (out []peSection) {
	for i := range int(min(h.u16(h.nt+6), 96)) { // as many as the Windows loader takes
		at := h.table + 40*i
		if at+40 > pageSize {
			break
		}
		out = append(out, peSection{rva: uint64(h.u32(at + 12)), size: uint64(h.u32(at + 8)), flags: h.u32(at + 36)})
	}
	return out
}
