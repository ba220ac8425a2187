package pdb

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// Symbol is a public or global symbol of the program.
type Symbol struct {
	Name   string // as the linker knows it, decorated
	RVA    uint32
	Public bool // from the linker's table; false for data that the compiler described
	Code   bool // known for public symbols only
}

// Kinds of symbol records that are read (cvinfo.h, SYM_ENUM_e).
const (
	symLData16 = 0x0201 // S_LDATA32_16t: 16-bit type index, length-prefixed name
	symGData16 = 0x0202
	symPub16   = 0x0203
	symLDataST = 0x1007 // S_LDATA32_ST: length-prefixed name
	symGDataST = 0x1008
	symPubST   = 0x1009
	symLData   = 0x110c
	symGData   = 0x110d
	symPub     = 0x110e
)

// Symbols calls yield for each public and global symbol that has an address, in the
// order of the file, until yield returns false.
func (f *File) Symbols(yield func(Symbol) bool) error {
	if f.dbi == nil || f.dbi.symbols == noStream {
		return nil
	}
	s, err := f.msf.stream(f.dbi.symbols)
	if err != nil {
		return fmt.Errorf("symbol records: %w", err)
	}
	if s.Size() > f.size {
		return fmt.Errorf("symbol records: %w", corrupt("%d bytes in a file of %d", s.Size(), f.size))
	}
	live, err := f.liveRecords()
	if err != nil {
		return err
	}
	r := bufio.NewReaderSize(io.NewSectionReader(s, 0, s.Size()), 1<<16)
	buf := make([]byte, 1<<16)
	at := uint32(0)
	for n := 0; ; n++ {
		var head [2]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("symbol record %d: %w", n, errEnd(err))
		}
		rec := buf[:binary.LittleEndian.Uint16(head[:])]
		if len(rec) < 2 {
			return fmt.Errorf("symbol record %d: %w", n, corrupt("%d bytes", len(rec)))
		}
		if _, err := io.ReadFull(r, rec); err != nil {
			return fmt.Errorf("symbol record %d: %w", n, errEnd(err))
		}
		start := at
		at += 2 + uint32(len(rec))
		if live != nil {
			if _, ok := slices.BinarySearch(live, start); !ok {
				continue
			}
		}
		sym, ok, err := f.dbi.symbol(rec)
		if err != nil {
			return fmt.Errorf("symbol record %d: %w", n, err)
		}
		if ok && !yield(sym) {
			return nil
		}
	}
}

const (
	gsiSignature = 0xffffffff // of a hash table with a header (gsi.h, GSIHashHdr)
	gsiHeader    = 16         // bytes
	psiHeader    = 28         // bytes in front of the hash table of public symbols (PSGSIHDR)
)

// liveRecords returns the offsets of the symbol records that the hash tables of globals and
// publics refer to, in ascending order. An incremental linker leaves other records behind,
// which are obsolete. nil stands for all records, if there are no such tables.
func (f *File) liveRecords() ([]uint32, error) {
	var live []uint32
	for _, table := range []struct{ stream, at uint32 }{{f.dbi.globals, 0}, {f.dbi.publics, psiHeader}} {
		if table.stream == noStream {
			continue
		}
		s, err := f.msf.stream(table.stream)
		if err != nil {
			return nil, fmt.Errorf("symbol hash table: %w", err)
		}
		if s.size < table.at+gsiHeader {
			continue
		}
		h, err := s.bytes(table.at, gsiHeader)
		if err != nil {
			return nil, err
		}
		le := binary.LittleEndian
		if le.Uint32(h) != gsiSignature {
			return nil, nil // of the form before version 7
		}
		n := le.Uint32(h[8:])
		if n%8 != 0 || int64(n) > f.size {
			return nil, fmt.Errorf("symbol hash table: %w", corrupt("records of %d bytes", n))
		}
		raw, err := s.bytes(table.at+gsiHeader, n)
		if err != nil {
			return nil, fmt.Errorf("symbol hash table: %w", err)
		}
		for i := 0; i+8 <= len(raw); i += 8 {
			if off := le.Uint32(raw[i:]); off != 0 {
				live = append(live, off-1)
			}
		}
	}
	slices.Sort(live)
	return live, nil
}

// errEnd reports a record that goes beyond the end of its stream.
func errEnd(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return corrupt("it runs over the end of its stream")
	}
	return err
}

// symbol decodes one record. ok is false if it is of another kind or has no address.
func (d *dbi) symbol(rec []byte) (Symbol, bool, error) {
	c := cursor{p: rec}
	kind := c.u16()
	var s Symbol
	var off uint32
	var segment uint16
	prefixed := false
	switch kind {
	case symPub, symPubST:
		s.Public = true
		s.Code = c.u32()&3 != 0 // CV_PUBSYMFLAGS: fCode, fFunction
		off, segment = c.u32(), c.u16()
		prefixed = kind == symPubST
	case symLData, symGData, symLDataST, symGDataST:
		c.u32() // type index
		off, segment = c.u32(), c.u16()
		prefixed = kind == symLDataST || kind == symGDataST
	case symLData16, symGData16, symPub16:
		s.Public = kind == symPub16
		off, segment = c.u32(), c.u16()
		c.u16() // type index
		prefixed = true
	default:
		return s, false, nil
	}
	s.Name = c.text(prefixed)
	if c.bad {
		return s, false, corrupt("of kind %#x, %d bytes: too short", kind, len(rec))
	}
	var ok bool
	s.RVA, ok = d.rva(segment, off)
	return s, ok && s.Name != "", nil
}
