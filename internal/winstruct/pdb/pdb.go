package pdb

import (
	"encoding/binary"
	"fmt"
	"io"
)

// Fixed numbers of streams.
const (
	streamInfo = 1
	streamTPI  = 2
	streamDBI  = 3
)

// Info is the identity of a PDB, which a program's debug record refers to.
type Info struct {
	GUID [16]byte // as it lies in the file and in the RSDS record
	Age  uint32   // the debug information's (DBI), which RSDS records hold; the container's where it has none
}

// GUIDText returns the GUID as symbol servers spell it: 32 upper-case hexadecimal digits.
func (i Info) GUIDText() string {
	g := i.GUID
	le := binary.LittleEndian
	return fmt.Sprintf("%08X%04X%04X%X", le.Uint32(g[:]), le.Uint16(g[4:]), le.Uint16(g[6:]), g[8:])
}

// File is an open PDB. It is not safe for concurrent use.
type File struct {
	msf  *msf
	size int64
	info Info
	dbi  *dbi // nil where the PDB has no debug information
}

// maxSize bounds a PDB, in bytes; those of browsers have 2 GiB.
const maxSize = 4 << 30

// Open reads the container and the identity of a PDB of size bytes. The File reads through
// r for as long as it is used; r stays the caller's. The error wraps ErrNotPDB, ErrCorrupt
// or ErrUnsupported.
func Open(r io.ReaderAt, size int64) (*File, error) {
	if size > maxSize {
		return nil, fmt.Errorf("%w: %d bytes", ErrUnsupported, size)
	}
	m, err := openMSF(r, size)
	if err != nil {
		return nil, err
	}
	f := &File{msf: m, size: size}
	if err := f.readInfo(); err != nil {
		return nil, fmt.Errorf("info stream: %w", err)
	}
	if err := f.readDBI(); err != nil {
		return nil, fmt.Errorf("debug information stream: %w", err)
	}
	return f, nil
}

// Info returns the PDB's identity.
func (f *File) Info() Info { return f.info }

// infoVC70Dep is the first version of the info stream that has a GUID.
const infoVC70Dep = 19990604

// readInfo reads what identifies the PDB in the info stream: version, time, age, GUID.
func (f *File) readInfo() error {
	s, err := f.msf.stream(streamInfo)
	if err != nil {
		return err
	}
	raw, err := s.bytes(0, min(s.size, 28))
	if err != nil {
		return err
	}
	if len(raw) < 28 {
		return corrupt("%d bytes", len(raw))
	}
	le := binary.LittleEndian
	if v := le.Uint32(raw); v < infoVC70Dep {
		return fmt.Errorf("%w: version %d has no GUID", ErrUnsupported, v)
	}
	f.info.Age = le.Uint32(raw[8:])
	copy(f.info.GUID[:], raw[12:28])
	return nil
}

// cursor reads a buffer from its start. Reading beyond its end sets bad and gives
// zeros.
type cursor struct {
	p   []byte
	bad bool
}

func (c *cursor) take(n int) []byte {
	if n < 0 || n > len(c.p) {
		c.bad, c.p = true, nil
		return nil
	}
	b := c.p[:n]
	c.p = c.p[n:]
	return b
}

func (c *cursor) u8() uint8 {
	if b := c.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (c *cursor) u16() uint16 {
	if b := c.take(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (c *cursor) u32() uint32 {
	if b := c.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (c *cursor) u64() uint64 {
	if b := c.take(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

// text reads a name: ended by a zero, or with its length in front.
func (c *cursor) text(prefixed bool) string {
	if prefixed {
		return string(c.take(int(c.u8())))
	}
	for i, b := range c.p {
		if b == 0 {
			s := string(c.p[:i])
			c.p = c.p[i+1:]
			return s
		}
	}
	c.bad, c.p = true, nil
	return ""
}
