package ntguest

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// peFile is a PE file of the guest's own disk: one of its programs, or a real one
// from a Debian package. The files are trusted as far as their format goes; a
// malformed one is an error of the layout.
type peFile struct {
	name     string // lower-case base name
	data     []byte
	pe32     bool
	base     uint64 // preferred
	size     uint64 // SizeOfImage
	entry    uint64 // RVA
	stamp    uint32
	headers  uint64 // SizeOfHeaders
	flat     bool   // sections are aligned below the page size
	dirs     [][2]uint64
	optional int // offset of the optional header
	sections []peSection

	exports  map[string]peExport
	ordinals map[uint64]peExport
	imports  []peImport
}

type peSection struct {
	name         string
	rva, vsize   uint64
	raw, rawSize uint64
	flags        uint32
}

type peExport struct {
	rva     uint64
	forward string // "dll.name", else ""
}

// peImport is one slot of the import address table.
type peImport struct {
	dll     string // lower case
	name    string // "" for an import by ordinal
	ordinal uint64
	slot    uint64 // RVA of the IAT entry
}

// readPE reads a file and what the loader needs of it.
func readPE(path string) (f *peFile, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if r := recover(); r != nil {
			f, err = nil, fmt.Errorf("read %s: not a sound PE file: %v", path, r)
		}
	}()
	le := binary.LittleEndian
	pe := int(le.Uint32(data[0x3c:]))
	if string(data[:2]) != "MZ" || string(data[pe:pe+4]) != "PE\x00\x00" {
		return nil, fmt.Errorf("read %s: no PE file", path)
	}
	f = &peFile{name: strings.ToLower(filepath.Base(path)), data: data, optional: pe + 24,
		exports: make(map[string]peExport), ordinals: make(map[uint64]peExport)}
	o := data[f.optional:]
	f.pe32 = le.Uint16(o) == 0x10b
	f.stamp = le.Uint32(data[pe+8:])
	f.entry = uint64(le.Uint32(o[16:]))
	f.size = (uint64(le.Uint32(o[56:])) + pageSize - 1) &^ (pageSize - 1)
	f.headers = uint64(le.Uint32(o[60:]))
	f.flat = le.Uint32(o[32:]) < pageSize
	dirs := 112
	if f.pe32 {
		f.base = uint64(le.Uint32(o[28:]))
		dirs = 96
	} else {
		f.base = le.Uint64(o[24:])
	}
	for i := range int(le.Uint32(o[dirs-4:])) {
		f.dirs = append(f.dirs, [2]uint64{uint64(le.Uint32(o[dirs+8*i:])), uint64(le.Uint32(o[dirs+8*i+4:]))})
	}
	table := data[f.optional+int(le.Uint16(data[pe+20:])):]
	for i := range int(le.Uint16(data[pe+6:])) {
		e := table[40*i:]
		f.sections = append(f.sections, peSection{
			name: strings.TrimRight(string(e[:8]), "\x00"), vsize: uint64(le.Uint32(e[8:])), rva: uint64(le.Uint32(e[12:])),
			rawSize: uint64(le.Uint32(e[16:])), raw: uint64(le.Uint32(e[20:])), flags: le.Uint32(e[36:])})
	}
	img := f.lay()
	f.readExports(img)
	f.readImports(img)
	return f, nil
}

// lay returns the image as mapped before anything is changed in it.
func (f *peFile) lay() []byte {
	img := make([]byte, f.size)
	if f.flat {
		copy(img, f.data)
		return img
	}
	copy(img, f.data[:min(f.headers, uint64(len(f.data)))])
	for _, s := range f.sections {
		n := s.rawSize
		if s.vsize != 0 {
			n = min(n, (s.vsize+pageSize-1)&^(pageSize-1))
		}
		if raw := s.raw &^ 511; n > 0 && s.raw != 0 { // the memory manager counts sectors
			copy(img[s.rva:], f.data[raw:min(raw+n, uint64(len(f.data)))])
		}
	}
	return img
}

func (f *peFile) dir(i int) (rva, size uint64) {
	if i >= len(f.dirs) {
		return 0, 0
	}
	return f.dirs[i][0], f.dirs[i][1]
}

func text(img []byte, rva uint64) string {
	s := img[rva:]
	for i, c := range s {
		if c == 0 {
			return string(s[:i])
		}
	}
	return ""
}

func (f *peFile) readExports(img []byte) {
	rva, size := f.dir(0)
	if rva == 0 {
		return
	}
	le := binary.LittleEndian
	d := img[rva:]
	base := uint64(le.Uint32(d[16:]))
	functions := uint64(le.Uint32(d[28:]))
	export := func(i uint64) peExport {
		e := peExport{rva: uint64(le.Uint32(img[functions+4*i:]))}
		if e.rva >= rva && e.rva < rva+size {
			e.forward = text(img, e.rva)
		}
		return e
	}
	for i := range uint64(le.Uint32(d[20:])) {
		f.ordinals[base+i] = export(i)
	}
	names, ordinals := uint64(le.Uint32(d[32:])), uint64(le.Uint32(d[36:]))
	for i := range uint64(le.Uint32(d[24:])) {
		name := text(img, uint64(le.Uint32(img[names+4*i:])))
		f.exports[name] = export(uint64(le.Uint16(img[ordinals+2*i:])))
	}
}

func (f *peFile) readImports(img []byte) {
	rva, _ := f.dir(1)
	if rva == 0 {
		return
	}
	le := binary.LittleEndian
	word := uint64(8)
	if f.pe32 {
		word = 4
	}
	for ; ; rva += 20 {
		d := img[rva:]
		names, dll, slots := uint64(le.Uint32(d)), uint64(le.Uint32(d[12:])), uint64(le.Uint32(d[16:]))
		if dll == 0 || dll >= f.size || names >= f.size || slots >= f.size {
			return // the loader would refuse such a table; ClamAV's test file has one
		}
		if names == 0 {
			names = slots
		}
		for i := uint64(0); ; i += word {
			var v uint64
			if f.pe32 {
				v = uint64(le.Uint32(img[names+i:]))
			} else {
				v = le.Uint64(img[names+i:])
			}
			if v == 0 {
				break
			}
			imp := peImport{dll: strings.ToLower(text(img, dll)), slot: slots + i}
			if v>>(8*word-1) != 0 {
				imp.ordinal = v & 0xffff
			} else {
				imp.name = text(img, v+2)
			}
			f.imports = append(f.imports, imp)
		}
	}
}

// relocated returns the image as mapped at base: sections laid out, relocations
// applied, the header's ImageBase set to where it lies, as the memory manager does.
func (f *peFile) relocated(base uint64) []byte {
	img := f.lay()
	le := binary.LittleEndian
	delta := base - f.base
	if f.pe32 {
		le.PutUint32(img[f.optional+28:], uint32(base))
	} else {
		le.PutUint64(img[f.optional+24:], base)
	}
	rva, size := f.dir(5)
	if delta == 0 || rva == 0 {
		return img
	}
	for end := rva + size; rva+8 <= end; {
		page, block := uint64(le.Uint32(img[rva:])), uint64(le.Uint32(img[rva+4:]))
		if block < 8 {
			break
		}
		for at := rva + 8; at+2 <= rva+block; at += 2 {
			e := le.Uint16(img[at:])
			to := page + uint64(e&0xfff)
			switch e >> 12 {
			case 3: // IMAGE_REL_BASED_HIGHLOW
				le.PutUint32(img[to:], le.Uint32(img[to:])+uint32(delta))
			case 10: // IMAGE_REL_BASED_DIR64
				le.PutUint64(img[to:], le.Uint64(img[to:])+delta)
			}
		}
		rva += block
	}
	return img
}
