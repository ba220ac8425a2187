package introspect

import (
	"encoding/binary"
	"fmt"
	"time"
	"unicode/utf16"

	"vmav.dev/vmav/internal/winstruct"
)

// word reads an integer of pointer size.
func (as *AddressSpace) word(va uint64) (uint64, error) { return as.integer(va, as.ptr) }

// u64 reads a 64-bit value.
func (as *AddressSpace) u64(va uint64) (uint64, error) { return as.integer(va, 8) }

func (as *AddressSpace) integer(va uint64, size uint32) (uint64, error) {
	b := wordPool.Get().(*[8]byte)
	defer wordPool.Put(b)
	clear(b[:])
	if err := as.Read(b[:size], va); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b[:]), nil
}

// record is a copy of one structure in guest memory. word is the size of a pointer in it,
// in bytes. An offset outside the copy reads as zero; offsets come from a checked profile,
// not from the guest.
type record struct {
	b    []byte
	word uint32
}

// newRecord returns an empty record of size bytes.
func (as *AddressSpace) newRecord(size uint32) record {
	return record{make([]byte, size), as.ptr}
}

// readRecord reads size bytes at an address.
func (as *AddressSpace) readRecord(va uint64, size uint32) (record, error) {
	r := as.newRecord(size)
	return r, as.Read(r.b, va)
}

// part returns the first n bytes of r, or all if there are fewer.
func (r record) part(n uint32) record { return record{r.b[:min(int(n), len(r.b))], r.word} }

// from returns what follows the first n bytes of r.
func (r record) from(n uint32) record { return record{r.b[min(int(n), len(r.b)):], r.word} }

// ptr reads a pointer, or an integer of pointer size.
func (r record) ptr(off uint32) uint64 {
	if r.word == 4 {
		return uint64(r.u32(off))
	}
	return r.u64(off)
}

func (r record) u64(off uint32) uint64 {
	if uint64(off)+8 > uint64(len(r.b)) {
		return 0
	}
	return binary.LittleEndian.Uint64(r.b[off:])
}

func (r record) u32(off uint32) uint32 {
	if uint64(off)+4 > uint64(len(r.b)) {
		return 0
	}
	return binary.LittleEndian.Uint32(r.b[off:])
}

func (r record) u16(off uint32) uint16 {
	if uint64(off)+2 > uint64(len(r.b)) {
		return 0
	}
	return binary.LittleEndian.Uint16(r.b[off:])
}

func (r record) u8(off uint32) uint8 {
	if uint64(off) >= uint64(len(r.b)) {
		return 0
	}
	return r.b[off]
}

// field reads an integer or bit field of up to eight bytes.
func (r record) field(f winstruct.Field) uint64 {
	switch f.Size {
	case 1:
		return f.Bits(uint64(r.u8(f.Offset)))
	case 2:
		return f.Bits(uint64(r.u16(f.Offset)))
	case 4:
		return f.Bits(uint64(r.u32(f.Offset)))
	}
	return f.Bits(r.u64(f.Offset))
}

// text8 reads a fixed array of characters up to its zero.
func (r record) text8(f winstruct.Field) string {
	end := min(uint64(f.Offset)+uint64(f.Size), uint64(len(r.b)))
	if uint64(f.Offset) >= end {
		return ""
	}
	s := r.b[f.Offset:end]
	for i, c := range s {
		if c == 0 {
			return string(s[:i])
		}
	}
	return string(s)
}

// time reads a FILETIME: units of 100 ns since 1601 in UTC. The result is the zero time if
// it lies before 1970 or after 2170.
func (r record) time(off uint32) time.Time {
	const unixEpoch = 116444736000000000
	t := r.u64(off)
	if t < unixEpoch || t > unixEpoch+200*365*24*3600*10_000_000 {
		return time.Time{}
	}
	t -= unixEpoch
	return time.Unix(int64(t/10_000_000), int64(t%10_000_000)*100).UTC()
}

// unicode reads the UNICODE_STRING at an offset of r; its text is in as. The structure has
// two lengths of two bytes and an aligned pointer.
func (r record) unicode(as *AddressSpace, off uint32) (string, error) {
	return readUTF16(as, r.ptr(off+r.word), uint32(r.u16(off)))
}

// unicodeSize returns the size of a UNICODE_STRING in bytes.
func (as *AddressSpace) unicodeSize() uint32 { return 2 * as.ptr }

// readUTF16 reads n bytes of UTF-16. Half of a surrogate pair becomes U+FFFD.
func readUTF16(as *AddressSpace, at uint64, n uint32) (string, error) {
	n &^= 1
	if n == 0 {
		return "", nil
	}
	if n > maxText {
		return "", fmt.Errorf("a string of %d bytes", n)
	}
	raw := make([]byte, n)
	if err := as.Read(raw, at); err != nil {
		return "", err
	}
	units := make([]uint16, n/2)
	for i := range units {
		units[i] = binary.LittleEndian.Uint16(raw[2*i:])
	}
	return string(utf16.Decode(units)), nil
}
