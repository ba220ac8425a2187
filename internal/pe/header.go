package pe

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Errors that a caller may act on. Every error of a rebuild wraps one of them.
var (
	// ErrHeaders reports headers that are missing, wiped or contradict themselves.
	ErrHeaders = errors.New("no usable PE headers")
	// ErrTooLarge reports an image that claims more than the limits of Options allow.
	ErrTooLarge = errors.New("image exceeds a limit")
)

// Machine types of the file header that the package treats specially.
const (
	machineI386  = 0x014c
	machineARMNT = 0x01c4
	machineAMD64 = 0x8664
	machineARM64 = 0xaa64
)

// Bits of the file header's Characteristics.
const (
	fileRelocsStripped = 0x0001
	fileDLL            = 0x2000
)

// Data directory indices.
const (
	dirExport      = 0
	dirImport      = 1
	dirResource    = 2
	dirException   = 3
	dirSecurity    = 4
	dirBaseReloc   = 5
	dirDebug       = 6
	dirTLS         = 9
	dirLoadConfig  = 10
	dirBoundImport = 11
	dirIAT         = 12
	dirDelayImport = 13
	dirCLR         = 14
	numDirs        = 16
)

// Section characteristics.
const (
	scnCode        = 0x00000020
	scnUninit      = 0x00000080
	scnDiscardable = 0x02000000
	scnExecute     = 0x20000000
	scnRead        = 0x40000000
	scnWrite       = 0x80000000
)

const (
	magicPE32     = 0x10b
	magicPE32Plus = 0x20b

	sectionHeaderSize = 40
	fileHeaderSize    = 20

	// maxSections bounds the section table. Windows up to Vista refuses images with more
	// than 96 sections, later versions accept 65535. No linker makes nearly as many.
	maxSections = 4096
)

// Directory is one entry of the data directory: an RVA and a size in bytes, both unchecked claims.
type Directory struct {
	RVA, Size uint32
}

// Section is one entry of the section table. Sizes and offsets are in bytes and
// are claims of the header; Rebuild checks them against the image.
type Section struct {
	Name            string // up to 8 bytes, without trailing zeros; guest-controlled
	VirtualAddress  uint32 // RVA
	VirtualSize     uint32
	RawOffset       uint32 // PointerToRawData
	RawSize         uint32 // SizeOfRawData
	Characteristics uint32
}

// Executable reports whether the section's pages may be executed.
func (s *Section) Executable() bool { return s.Characteristics&(scnExecute|scnCode) != 0 }

// Writable reports whether the section's pages may be written.
func (s *Section) Writable() bool { return s.Characteristics&scnWrite != 0 }

// Headers are the parsed headers of an image.
type Headers struct {
	PE64                 bool // PE32+
	Machine              uint16
	Characteristics      uint16
	TimeDateStamp        uint32
	SymbolTable          uint32 // PointerToSymbolTable, a file offset
	Symbols              uint32
	LinkerMajor          uint8
	LinkerMinor          uint8
	EntryPoint           uint32 // RVA
	ImageBase            uint64 // as it stands in the header
	SectionAlignment     uint32
	FileAlignment        uint32
	SizeOfImage          uint32
	SizeOfHeaders        uint32
	CheckSum             uint32
	Subsystem            uint16
	DLLCharacteristics   uint16
	SizeOfOptionalHeader uint16
	Dirs                 [numDirs]Directory
	NumDirs              uint32 // directories that are there, at most 16
	Sections             []Section

	ntOffset  uint32 // offset of "PE\0\0"
	sectTable uint32 // offset of the section table
}

// optOffset is the offset of the optional header.
func (h *Headers) optOffset() uint32 { return h.ntOffset + 4 + fileHeaderSize }

// imageBaseField returns offset and size of the ImageBase field.
func (h *Headers) imageBaseField() (off uint32, size int) {
	if h.PE64 {
		return h.optOffset() + 24, 8
	}
	return h.optOffset() + 28, 4
}

// checkSumField is the offset of the CheckSum field, which is the same in PE32 and PE32+.
func (h *Headers) checkSumField() uint32 { return h.optOffset() + 64 }

// dirEntry is the offset of data directory entry i.
func (h *Headers) dirEntry(i int) uint32 {
	if h.PE64 {
		return h.optOffset() + 112 + uint32(i)*8
	}
	return h.optOffset() + 96 + uint32(i)*8
}

// ptrSize is the size of a pointer in the image, in bytes.
func (h *Headers) ptrSize() int {
	if h.PE64 {
		return 8
	}
	return 4
}

// lowAlignment reports whether the image is mapped flat, file offset = RVA: that is
// what the memory manager does when SectionAlignment is below the page size.
func (h *Headers) lowAlignment() bool { return h.SectionAlignment < PageSize }

// ParseHeaders parses the headers at the start of buf, which may be a file or a mapped
// image. Only what lies inside buf is used. The result shares no memory with buf. The error
// wraps ErrHeaders.
func ParseHeaders(buf []byte) (*Headers, error) {
	h := new(Headers)
	if err := h.parse(buf); err != nil {
		return nil, err
	}
	return h, nil
}

func headersError(format string, args ...any) error {
	return fmt.Errorf("parse headers: "+format+": %w", append(args, ErrHeaders)...)
}

// parse fills h, reusing its section slice.
func (h *Headers) parse(buf []byte) error {
	sections := h.Sections[:0]
	*h = Headers{}
	h.Sections = sections
	le := binary.LittleEndian
	if len(buf) < 0x40 || buf[0] != 'M' || buf[1] != 'Z' {
		return headersError("no MZ")
	}
	nt := uint64(le.Uint32(buf[0x3c:]))
	if nt > uint64(len(buf)) || uint64(len(buf))-nt < 4+fileHeaderSize+2 {
		return headersError("e_lfanew %#x outside the image", nt)
	}
	if nt%4 != 0 {
		return headersError("e_lfanew %#x not aligned", nt)
	}
	if le.Uint32(buf[nt:]) != 0x4550 {
		return headersError("no PE signature at %#x", nt)
	}
	h.ntOffset = uint32(nt)
	fh := buf[nt+4:]
	h.Machine = le.Uint16(fh)
	count := int(le.Uint16(fh[2:]))
	h.TimeDateStamp = le.Uint32(fh[4:])
	h.SymbolTable = le.Uint32(fh[8:])
	h.Symbols = le.Uint32(fh[12:])
	h.SizeOfOptionalHeader = le.Uint16(fh[16:])
	h.Characteristics = le.Uint16(fh[18:])
	opt := fh[fileHeaderSize:]
	fixed := 96
	switch magic := le.Uint16(opt); magic {
	case magicPE32:
	case magicPE32Plus:
		h.PE64 = true
		fixed = 112
	default:
		return headersError("optional header magic %#x", magic)
	}
	if len(opt) < fixed {
		return headersError("optional header cut off")
	}
	h.LinkerMajor, h.LinkerMinor = opt[2], opt[3]
	h.EntryPoint = le.Uint32(opt[16:])
	if h.PE64 {
		h.ImageBase = le.Uint64(opt[24:])
	} else {
		h.ImageBase = uint64(le.Uint32(opt[28:]))
	}
	h.SectionAlignment = le.Uint32(opt[32:])
	h.FileAlignment = le.Uint32(opt[36:])
	h.SizeOfImage = le.Uint32(opt[56:])
	h.SizeOfHeaders = le.Uint32(opt[60:])
	h.CheckSum = le.Uint32(opt[64:])
	h.Subsystem = le.Uint16(opt[68:])
	h.DLLCharacteristics = le.Uint16(opt[70:])
	if a := h.SectionAlignment; a == 0 || a&(a-1) != 0 {
		return headersError("section alignment %#x", a)
	}
	if a := h.FileAlignment; a == 0 || a&(a-1) != 0 || a > 0x10000 || a > h.SectionAlignment && !h.lowAlignment() {
		return headersError("file alignment %#x", a)
	}
	h.NumDirs = min(le.Uint32(opt[fixed-4:]), numDirs)
	for i := 0; i < int(h.NumDirs) && len(opt) >= fixed+8*(i+1); i++ {
		h.Dirs[i] = Directory{le.Uint32(opt[fixed+8*i:]), le.Uint32(opt[fixed+8*i+4:])}
	}
	if count > maxSections {
		return headersError("%d sections", count)
	}
	table := nt + 4 + fileHeaderSize + uint64(h.SizeOfOptionalHeader)
	if table+uint64(count)*sectionHeaderSize > uint64(len(buf)) {
		return headersError("section table outside the image")
	}
	h.sectTable = uint32(table)
	for i := 0; i < count; i++ {
		h.Sections = append(h.Sections, parseSection(buf[table+uint64(i)*sectionHeaderSize:]))
	}
	return nil
}

func parseSection(b []byte) Section {
	le := binary.LittleEndian
	n := 8
	for n > 0 && b[n-1] == 0 {
		n--
	}
	return Section{
		Name:            sectionName(b[:n]),
		VirtualSize:     le.Uint32(b[8:]),
		VirtualAddress:  le.Uint32(b[12:]),
		RawSize:         le.Uint32(b[16:]),
		RawOffset:       le.Uint32(b[20:]),
		Characteristics: le.Uint32(b[36:]),
	}
}

// sectionName returns the string without allocating for the names that every linker uses.
func sectionName(b []byte) string {
	switch string(b) {
	case ".text":
		return ".text"
	case ".data":
		return ".data"
	case ".rdata":
		return ".rdata"
	case ".pdata":
		return ".pdata"
	case ".xdata":
		return ".xdata"
	case ".rsrc":
		return ".rsrc"
	case ".reloc":
		return ".reloc"
	case ".bss":
		return ".bss"
	case ".idata":
		return ".idata"
	case ".edata":
		return ".edata"
	}
	return string(b)
}
