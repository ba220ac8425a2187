package petest

import (
	"bytes"
	"encoding/binary"
	"sort"
)

// Builder makes PE files with features that no file at hand has.
type Builder struct {
	Is64      bool
	Base      uint64 // preferred
	Align     uint32 // of sections; 0 is a page
	Sections  []Section
	Relocs    []Reloc
	Dirs      map[int][2]uint32 // RVA and size by index
	CheckSum  bool
	Flags     uint16 // Characteristics besides those of the kind
	DLLFlags  uint16
	Entry     uint32
	Overlay   []byte
	Subsystem uint16
}

// Section is a section to be built; its raw data is Data, padded.
type Section struct {
	Name  string
	RVA   uint32
	Size  uint32 // VirtualSize; 0 is that of Data
	Data  []byte
	Flags uint32
}

// Reloc is one base relocation. Param is the second word of HIGHADJ.
type Reloc struct {
	RVA   uint32
	Type  uint16
	Param uint16
}

// relocSection encodes the relocations, blocks in order of their pages.
func (b *Builder) relocSection() []byte {
	sort.SliceStable(b.Relocs, func(i, j int) bool { return b.Relocs[i].RVA&^0xfff < b.Relocs[j].RVA&^0xfff })
	var out bytes.Buffer
	le := binary.LittleEndian
	for i := 0; i < len(b.Relocs); {
		page := b.Relocs[i].RVA &^ 0xfff
		var words []uint16
		for ; i < len(b.Relocs) && b.Relocs[i].RVA&^0xfff == page; i++ {
			r := b.Relocs[i]
			words = append(words, r.Type<<12|uint16(r.RVA&0xfff))
			if r.Type == 4 {
				words = append(words, r.Param)
			}
		}
		if len(words)%2 == 1 {
			words = append(words, 0)
		}
		out.Write(le.AppendUint32(le.AppendUint32(nil, page), uint32(8+2*len(words))))
		for _, w := range words {
			out.Write(le.AppendUint16(nil, w))
		}
	}
	return out.Bytes()
}

// File encodes the file.
func (b *Builder) File() []byte {
	le := binary.LittleEndian
	const nt = 0x80
	align, fileAlign := b.Align, uint32(0x200)
	if align == 0 {
		align = 0x1000
	}
	if align < 0x1000 {
		fileAlign = align
	}
	sections := append([]Section(nil), b.Sections...)
	dirs := map[int][2]uint32{}
	for k, v := range b.Dirs {
		dirs[k] = v
	}
	up := func(v, a uint32) uint32 { return (v + a - 1) &^ (a - 1) }
	top := uint32(0)
	for i := range sections {
		if s := &sections[i]; s.Size == 0 {
			s.Size = uint32(len(s.Data))
		}
		top = max(top, up(sections[i].RVA+sections[i].Size, align))
	}
	if len(b.Relocs) > 0 {
		data := b.relocSection()
		sections = append(sections, Section{".reloc", top, uint32(len(data)), data, 0x42000040})
		dirs[5] = [2]uint32{top, uint32(len(data))}
		top = up(top+uint32(len(data)), align)
	}
	opt := 0xe0
	if b.Is64 {
		opt = 0xf0
	}
	headers := up(uint32(nt+24+opt+40*len(sections)), fileAlign)
	out := make([]byte, headers)
	copy(out, "MZ")
	le.PutUint32(out[0x3c:], nt)
	copy(out[nt:], "PE\x00\x00")
	machine, flags := uint16(0x14c), uint16(0x102)
	if b.Is64 {
		machine, flags = 0x8664, 0x22
	}
	le.PutUint16(out[nt+4:], machine)
	le.PutUint16(out[nt+6:], uint16(len(sections)))
	le.PutUint16(out[nt+20:], uint16(opt))
	le.PutUint16(out[nt+22:], flags|b.Flags)
	o := out[nt+24:]
	first := 96
	if b.Is64 {
		le.PutUint16(o, 0x20b)
		le.PutUint64(o[24:], b.Base)
		first = 112
	} else {
		le.PutUint16(o, 0x10b)
		le.PutUint32(o[28:], uint32(b.Base))
	}
	o[2] = 14
	le.PutUint32(o[16:], b.Entry)
	le.PutUint32(o[32:], align)
	le.PutUint32(o[36:], fileAlign)
	le.PutUint32(o[56:], top)
	le.PutUint32(o[60:], headers)
	le.PutUint16(o[68:], max(b.Subsystem, 2))
	le.PutUint16(o[70:], b.DLLFlags)
	le.PutUint32(o[first-4:], 16)
	for i, d := range dirs {
		le.PutUint32(o[first+8*i:], d[0])
		le.PutUint32(o[first+8*i+4:], d[1])
	}
	for i, s := range sections {
		e := out[nt+24+opt+40*i:]
		raw := up(uint32(len(s.Data)), fileAlign)
		at := uint32(len(out))
		if align < 0x1000 && raw > 0 {
			at = s.RVA // mapped flat
			out = append(out, make([]byte, int(at)-len(out))...)
			e = out[nt+24+opt+40*i:]
		}
		copy(e[:8], s.Name)
		le.PutUint32(e[8:], s.Size)
		le.PutUint32(e[12:], s.RVA)
		le.PutUint32(e[16:], raw)
		if raw > 0 {
			le.PutUint32(e[20:], at)
		}
		le.PutUint32(e[36:], s.Flags)
		out = append(out, s.Data...)
		out = append(out, make([]byte, int(at+raw)-len(out))...)
	}
	out = append(out, b.Overlay...)
	if b.CheckSum {
		le.PutUint32(out[nt+24+64:], sum(out))
	}
	return out
}

// sum is the checksum, word by word as it is specified; the field is zero.
func sum(file []byte) uint32 {
	var s uint32
	for i := 0; i < len(file); i += 2 {
		w := uint32(file[i])
		if i+1 < len(file) {
			w |= uint32(file[i+1]) << 8
		}
		s += w
		s = s&0xffff + s>>16
	}
	return s + uint32(len(file))
}
