// Package pdbtest writes PDBs for tests: the container, the streams of an identity,
// types, symbols and sections, byte by byte from the published format. It shares no
// code with the reader that it tests.
package pdbtest

import (
	"encoding/binary"
	"fmt"
)

// Section is a section header: its name, address and size.
type Section struct {
	Name      string
	RVA, Size uint32
}

// PDB describes the PDB to write. Types and Symbols are records without their lengths; see
// Rec.
type PDB struct {
	GUID        [16]byte
	Age         uint32
	Machine     uint16
	TypeVersion uint32 // 0 for 20040203
	BlockSize   int    // 0 for 4096
	Types       [][]byte
	Symbols     [][]byte
	Dead        map[int]bool // symbols that no hash table refers to
	Sections    []Section
	Original    []Section   // before the program was reordered
	Omap        [][2]uint32 // from original addresses to those of Sections
	NoDebug     bool        // leave the debug information stream out
}

// FirstType is the index of the first type.
const FirstType = 0x1000

// Add appends a type record and returns its index.
func (p *PDB) Add(record []byte) uint32 {
	p.Types = append(p.Types, record)
	return FirstType + uint32(len(p.Types)-1)
}

// Prefixed is a name that is written with its length in front.
type Prefixed string

// Num is a numeric leaf, in the shortest of its forms.
type Num uint64

// Rec makes a record: a leaf or kind, followed by integers, names and numbers. With its
// length it is padded to a multiple of four, as compilers do.
func Rec(kind uint16, parts ...any) []byte {
	b := binary.LittleEndian.AppendUint16(nil, kind)
	for _, part := range parts {
		b = appendPart(b, part)
	}
	for (len(b)+2)%4 != 0 {
		b = append(b, 0xf0|byte(4-(len(b)+2)%4))
	}
	return b
}

// List makes a field list of entries: each is padded to a multiple of four.
func List(leaf uint16, entries ...[]byte) []byte {
	b := binary.LittleEndian.AppendUint16(nil, leaf)
	for _, e := range entries {
		b = append(b, e...)
		for (len(b)+2)%4 != 0 {
			b = append(b, 0xf0|byte(4-(len(b)+2)%4))
		}
	}
	return b
}

// Entry makes one entry of a field list.
func Entry(leaf uint16, parts ...any) []byte {
	b := binary.LittleEndian.AppendUint16(nil, leaf)
	for _, part := range parts {
		b = appendPart(b, part)
	}
	return b
}

func appendPart(b []byte, part any) []byte {
	le := binary.LittleEndian
	switch v := part.(type) {
	case uint8:
		return append(b, v)
	case uint16:
		return le.AppendUint16(b, v)
	case uint32:
		return le.AppendUint32(b, v)
	case uint64:
		return le.AppendUint64(b, v)
	case string:
		return append(append(b, v...), 0)
	case Prefixed:
		return append(append(b, byte(len(v))), v...)
	case []byte:
		return append(b, v...)
	case Num:
		switch {
		case v < 0x8000:
			return le.AppendUint16(b, uint16(v))
		case v < 1<<16:
			return le.AppendUint16(le.AppendUint16(b, 0x8002), uint16(v))
		case v < 1<<32:
			return le.AppendUint32(le.AppendUint16(b, 0x8004), uint32(v))
		}
		return le.AppendUint64(le.AppendUint16(b, 0x800a), uint64(v))
	}
	panic(fmt.Sprintf("pdbtest: %T is no part of a record", part))
}

func records(recs [][]byte) []byte {
	var b []byte
	for _, r := range recs {
		b = append(binary.LittleEndian.AppendUint16(b, uint16(len(r))), r...)
	}
	return b
}

// Streams returns the PDB's streams by number: the old directory, information, types, debug
// information, ids, symbol records, hash tables of globals and publics, section headers,
// address map, original section headers.
func (p *PDB) Streams() [][]byte {
	le := binary.LittleEndian
	info := le.AppendUint32(nil, 20000404)
	info = le.AppendUint32(info, 0x5f3a1c27) // time
	info = le.AppendUint32(info, p.Age)
	info = append(info, p.GUID[:]...)
	// One named stream, "/names", in a table of one bucket.
	info = append(le.AppendUint32(info, 7), "/names\x00"...)
	for _, w := range []uint32{1, 1, 1, 1, 0, 0, 4} { // size, capacity, present, deleted, offset, stream
		info = le.AppendUint32(info, w)
	}
	version := p.TypeVersion
	if version == 0 {
		version = 20040203
	}
	content := records(p.Types)
	types := le.AppendUint32(nil, version)
	for _, w := range []uint32{56, FirstType, FirstType + uint32(len(p.Types)), uint32(len(content)), 0xffffffff, 4, 0x3ffff, 0, 0, 0, 0, 0, 0} {
		types = le.AppendUint32(types, w)
	}
	types = append(types, content...)
	streams := [][]byte{nil, info, types, nil, nil}
	if p.NoDebug {
		return streams
	}
	symbols := records(p.Symbols)
	globals, publics := p.hashTables()
	streams = append(streams, symbols, globals, append(make([]byte, 28), publics...), sectionHeaders(p.Sections))
	const snSymbols, snGlobals, snPublics, snSections = 5, 6, 7, 8
	debug := []uint16{0xffff, 0xffff, 0xffff, 0xffff, 0xffff, snSections, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff}
	if p.Omap != nil {
		var omap []byte
		for _, e := range p.Omap {
			omap = le.AppendUint32(le.AppendUint32(omap, e[0]), e[1])
		}
		debug[4], debug[10] = uint16(len(streams)), uint16(len(streams)+1)
		streams = append(streams, omap, sectionHeaders(p.Original))
	}
	dbi := le.AppendUint32(nil, 0xffffffff)
	dbi = le.AppendUint32(dbi, 19990903)
	dbi = le.AppendUint32(dbi, p.Age)
	for _, w := range []uint16{snGlobals, 0, snPublics, 0, snSymbols, 0} {
		dbi = le.AppendUint16(dbi, w)
	}
	for _, w := range []uint32{0, 0, 0, 0, 0, 0, uint32(2 * len(debug)), 0} {
		dbi = le.AppendUint32(dbi, w)
	}
	dbi = le.AppendUint16(dbi, 0)
	dbi = le.AppendUint16(dbi, p.Machine)
	dbi = le.AppendUint32(dbi, 0)
	for _, w := range debug {
		dbi = le.AppendUint16(dbi, w)
	}
	streams[3] = dbi
	return streams
}

// hashTables are the hash tables of globals and publics as far as a reader needs them:
// the header and the list of records.
func (p *PDB) hashTables() (globals, publics []byte) {
	le := binary.LittleEndian
	var refs [2][]byte
	at := uint32(0)
	for i, s := range p.Symbols {
		table := 0
		switch le.Uint16(s) {
		case 0x110e, 0x1009, 0x0203:
			table = 1
		}
		if !p.Dead[i] {
			refs[table] = le.AppendUint32(le.AppendUint32(refs[table], at+1), 1)
		}
		at += 2 + uint32(len(s))
	}
	header := func(recs []byte) []byte {
		var h []byte
		for _, w := range []uint32{0xffffffff, 0xeffe0000 + 19990810, uint32(len(recs)), 0} {
			h = le.AppendUint32(h, w)
		}
		return append(h, recs...)
	}
	return header(refs[0]), header(refs[1])
}

func sectionHeaders(sections []Section) []byte {
	var b []byte
	for _, s := range sections {
		h := make([]byte, 40)
		copy(h[:8], s.Name)
		binary.LittleEndian.PutUint32(h[8:], s.Size)
		binary.LittleEndian.PutUint32(h[12:], s.RVA)
		b = append(b, h...)
	}
	return b
}

// Bytes returns the PDB as a file.
func (p *PDB) Bytes() []byte {
	bs := p.BlockSize
	if bs == 0 {
		bs = 4096
	}
	return Container(bs, p.Streams())
}

// Container puts streams into an MSF 7.00 container. Blocks 1 and 2 are the maps of free
// blocks, as in every interval of blockSize blocks.
func Container(blockSize int, streams [][]byte) []byte {
	le := binary.LittleEndian
	file := make([]byte, 3*blockSize)
	alloc := func(data []byte) []uint32 {
		var blocks []uint32
		for len(data) > 0 {
			for n := len(file) / blockSize % blockSize; n == 1 || n == 2; n = len(file) / blockSize % blockSize {
				file = append(file, make([]byte, blockSize)...)
			}
			blocks = append(blocks, uint32(len(file)/blockSize))
			n := min(blockSize, len(data))
			file = append(append(file, data[:n]...), make([]byte, blockSize-n)...)
			data = data[n:]
		}
		return blocks
	}
	dir := le.AppendUint32(nil, uint32(len(streams)))
	for _, s := range streams {
		dir = le.AppendUint32(dir, uint32(len(s)))
	}
	for _, s := range streams {
		for _, b := range alloc(s) {
			dir = le.AppendUint32(dir, b)
		}
	}
	var blockMap []byte
	for _, b := range alloc(dir) {
		blockMap = le.AppendUint32(blockMap, b)
	}
	mapAt := alloc(blockMap)[0]
	copy(file, "Microsoft C/C++ MSF 7.00\r\n\x1aDS\x00\x00\x00")
	for i, w := range []uint32{uint32(blockSize), 1, uint32(len(file) / blockSize), uint32(len(dir)), 0, mapAt} {
		le.PutUint32(file[32+4*i:], w)
	}
	return file
}
