package pdb

import (
	"encoding/binary"
	"fmt"
	"sort"
)

// Machine types of a program (IMAGE_FILE_MACHINE_…).
const (
	MachineX86   = 0x14c
	MachineX64   = 0x8664
	MachineARM64 = 0xaa64
)

// Section is one section of the program, as its section header says.
type Section struct {
	Name string
	RVA  uint32
	Size uint32 // bytes in memory
}

// dbi has what the header of the debug information stream refers to.
type dbi struct {
	machine  uint16
	symbols  uint32    // stream of symbol records; noStream for none
	globals  uint32    // stream of the hash table of globals
	publics  uint32    // stream of the hash table of publics
	sections []Section // of the program as its symbols count them
	omap     []omapEntry
}

// omapEntry describes a move: a tool that reordered the program after linking moved the
// code from the address from, up to the next entry, to the address to. If to is 0, the code
// was removed.
type omapEntry struct{ from, to uint32 }

const (
	dbiHeader = 64 // bytes

	// Indices into the array of streams behind the header (pdb.h, DBGTYPE).
	dbgOmapFromSrc    = 4
	dbgSectionHdr     = 5
	dbgSectionHdrOrig = 10

	maxSections = 1 << 16
	maxOmap     = 1 << 24
)

// readDBI reads the debug information stream's header and the sections.
func (f *File) readDBI() error {
	s, err := f.msf.stream(streamDBI)
	if err != nil || s.size == 0 {
		return nil // types only
	}
	h, err := s.bytes(0, min(s.size, dbiHeader))
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	if len(h) < dbiHeader || int32(le.Uint32(h)) != -1 {
		return fmt.Errorf("%w: its header is of a form before version 7", ErrUnsupported)
	}
	f.info.Age = le.Uint32(h[8:])
	d := &dbi{machine: le.Uint16(h[58:]), symbols: uint32(le.Uint16(h[20:])),
		globals: uint32(le.Uint16(h[12:])), publics: uint32(le.Uint16(h[16:]))}
	f.dbi = d
	// Substreams follow the header: modules, section contributions, section map, files,
	// type servers, edit and continue, and last the array of debug streams.
	at := uint64(dbiHeader)
	for _, off := range []int{24, 28, 32, 36, 40, 52} {
		n := le.Uint32(h[off:])
		if n > s.size {
			return corrupt("a substream of %d bytes in a stream of %d", n, s.size)
		}
		at += uint64(n)
	}
	n := le.Uint32(h[48:])
	if at+uint64(n) > uint64(s.size) {
		return corrupt("debug streams at %d of a stream of %d bytes", at, s.size)
	}
	raw, err := s.bytes(uint32(at), min(n, 2*64))
	if err != nil {
		return err
	}
	dbg := func(i int) uint32 {
		if 2*i+2 > len(raw) {
			return noStream
		}
		return uint32(le.Uint16(raw[2*i:]))
	}
	if d.sections, err = f.sectionHeaders(dbg(dbgSectionHdr)); err != nil {
		return fmt.Errorf("section headers: %w", err)
	}
	if dbg(dbgOmapFromSrc) == noStream {
		return nil
	}
	// The program was reordered: its symbols refer to the sections that it had before.
	if d.omap, err = f.omapTable(dbg(dbgOmapFromSrc)); err != nil {
		return fmt.Errorf("address map: %w", err)
	}
	if orig := dbg(dbgSectionHdrOrig); len(d.omap) > 0 && orig != noStream {
		if d.sections, err = f.sectionHeaders(orig); err != nil {
			return fmt.Errorf("original section headers: %w", err)
		}
	}
	return nil
}

// sectionHeaders reads a stream of IMAGE_SECTION_HEADERs.
func (f *File) sectionHeaders(stream uint32) ([]Section, error) {
	if stream == noStream {
		return nil, nil
	}
	s, err := f.msf.stream(stream)
	if err != nil {
		return nil, err
	}
	const size = 40
	if s.size%size != 0 || s.size/size > maxSections {
		return nil, corrupt("%d bytes are no section headers", s.size)
	}
	raw, err := s.bytes(0, s.size)
	if err != nil {
		return nil, err
	}
	out := make([]Section, 0, s.size/size)
	for ; len(raw) > 0; raw = raw[size:] {
		c := cursor{p: raw[:8]}
		name := c.text(false)
		if c.bad {
			name = string(raw[:8])
		}
		out = append(out, Section{Name: name, Size: binary.LittleEndian.Uint32(raw[8:]), RVA: binary.LittleEndian.Uint32(raw[12:])})
	}
	return out, nil
}

// omapTable reads a stream of pairs, ordered by their first words.
func (f *File) omapTable(stream uint32) ([]omapEntry, error) {
	s, err := f.msf.stream(stream)
	if err != nil {
		return nil, err
	}
	if s.size%8 != 0 || s.size/8 > maxOmap || int64(s.size) > f.size {
		return nil, corrupt("%d bytes", s.size)
	}
	raw, err := s.bytes(0, s.size)
	if err != nil {
		return nil, err
	}
	w := words(raw)
	out := make([]omapEntry, 0, len(w)/2)
	for i := 0; i+1 < len(w); i += 2 {
		if i > 0 && w[i] < w[i-2] {
			return nil, corrupt("entry %d is out of order", i/2)
		}
		out = append(out, omapEntry{w[i], w[i+1]})
	}
	return out, nil
}

// Machine returns the program's machine type, or 0 if the PDB does not say.
func (f *File) Machine() uint16 {
	if f.dbi == nil {
		return 0
	}
	return f.dbi.machine
}

// rva converts a section number, which counts from 1, and an offset in that section into an
// RVA of the program as it is now. ok is false if there is none.
func (d *dbi) rva(segment uint16, off uint32) (uint32, bool) {
	if segment == 0 || int(segment) > len(d.sections) {
		return 0, false // an absolute symbol, or one of another program
	}
	at := uint64(d.sections[segment-1].RVA) + uint64(off)
	if at>>32 != 0 {
		return 0, false
	}
	if len(d.omap) == 0 {
		return uint32(at), true
	}
	i := sort.Search(len(d.omap), func(i int) bool { return uint64(d.omap[i].from) > at }) - 1
	if i < 0 || d.omap[i].to == 0 {
		return 0, false
	}
	to := uint64(d.omap[i].to) + at - uint64(d.omap[i].from)
	return uint32(to), to>>32 == 0
}
