package introspect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

const maxExports = 1 << 14 // names; kernels have some 3,000

// exportTable finds names in the export directory of the kernel image: the only symbols
// that an image carries itself.
type exportTable struct {
	as                          *AddressSpace
	base                        uint64
	size                        uint32
	names                       uint32 // how many
	functions, nameRVAs, ordRVA uint32 // RVAs of the three tables
	entries                     uint32 // of functions
}

// readExports reads the export directory (Microsoft, "PE Format").
func readExports(as *AddressSpace, base uint64, size uint32) (*exportTable, error) {
	var head [pageSize]byte
	if err := as.Read(head[:], base); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	pe := uint64(le.Uint32(head[0x3c:]))
	if pe > pageSize-0x108-8 {
		return nil, errors.New("no PE header")
	}
	dirs := pe + 24 + 112
	if le.Uint16(head[pe+24:]) == 0x10b {
		dirs = pe + 24 + 96
	}
	var dir [40]byte
	if err := as.Read(dir[:], base+uint64(le.Uint32(head[dirs:]))%uint64(size)); err != nil {
		return nil, fmt.Errorf("read export directory: %w", err)
	}
	e := &exportTable{as: as, base: base, size: size, entries: le.Uint32(dir[20:]), names: le.Uint32(dir[24:]),
		functions: le.Uint32(dir[28:]), nameRVAs: le.Uint32(dir[32:]), ordRVA: le.Uint32(dir[36:])}
	if e.names == 0 || e.names > maxExports || e.entries > maxExports {
		return nil, fmt.Errorf("an export directory with %d names", e.names)
	}
	return e, nil
}

// read fills p from an RVA of the image.
func (e *exportTable) read(p []byte, rva uint64) error {
	if rva+uint64(len(p)) > uint64(e.size) {
		return fmt.Errorf("RVA %#x is outside the image", rva)
	}
	return e.as.Read(p, e.base+rva)
}

// find returns the RVA of an exported name, 0 where there is none. Names are sorted.
func (e *exportTable) find(name string) (uint64, error) {
	low, high := uint32(0), e.names
	for low < high {
		mid := (low + high) / 2
		got, err := e.name(mid, len(name)+1)
		if err != nil {
			return 0, fmt.Errorf("read exported name %d: %w", mid, err)
		}
		switch c := strings.Compare(got, name); {
		case c < 0:
			low = mid + 1
		case c > 0:
			high = mid
		default:
			return e.function(mid)
		}
	}
	return 0, nil
}

// name reads the start of a name, at most n bytes.
func (e *exportTable) name(i uint32, n int) (string, error) {
	var rva [4]byte
	if err := e.read(rva[:], uint64(e.nameRVAs)+4*uint64(i)); err != nil {
		return "", err
	}
	text := make([]byte, n)
	if err := e.read(text, uint64(binary.LittleEndian.Uint32(rva[:]))); err != nil {
		return "", err
	}
	bare, _, _ := strings.Cut(string(text), "\x00")
	return bare, nil
}

func (e *exportTable) function(i uint32) (uint64, error) {
	var b [4]byte
	if err := e.read(b[:2], uint64(e.ordRVA)+2*uint64(i)); err != nil {
		return 0, err
	}
	ordinal := binary.LittleEndian.Uint16(b[:])
	if uint32(ordinal) >= e.entries {
		return 0, fmt.Errorf("ordinal %d of %d", ordinal, e.entries)
	}
	if err := e.read(b[:], uint64(e.functions)+4*uint64(ordinal)); err != nil {
		return 0, err
	}
	rva := binary.LittleEndian.Uint32(b[:])
	if rva >= e.size {
		return 0, fmt.Errorf("an export at RVA %#x", rva)
	}
	return uint64(rva), nil
}
