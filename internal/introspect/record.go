package introspect

import (
	"encoding/binary"
	"fmt"
	"time"
	"unicode/utf16"

	"vmav.dev/vmav/internal/winstruct"
)

// word reads a value of the width of a pointer.
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

// record is the copy of one structure of an address space with pointers of word bytes. An
// offset outside it reads as zero: the profile, not the guest, decides where fields lie,
// and profiles are checked.
type record struct {
	b    []byte
	word uint32
}

// newRecord is an empty record of so many bytes.
func (as *AddressSpace) newRecord(size uint32) record {
	return record{make([]byte, size), as.ptr}
}

// record reads so many bytes at an address.
func (as *AddressSpace) record(va uint64, size uint32) (record, error) {
	r := as.newRecord(size)
	return r, as.Read(r.b, va)
}

// part is the start of r, n bytes of it at most.
func (r record) part(n uint32) record { return record{r.b[:min(int(n), len(r.b))], r.word} }

// from is what follows the first n bytes of r.
func (r record) from(n uint32) record { return record{r.b[min(int(n), len(r.b)):], r.word} }

// ptr reads a pointer, or an integer of its width.
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

// time reads a FILETIME: 100 ns since 1601 in UTC. Zero, and what no system of ours
// can have seen, is the zero time.
func (r record) time(off uint32) time.Time {
	const unixEpoch = 116444736000000000
	t := r.u64(off)
	if t < unixEpoch || t > unixEpoch+200*365*24*3600*10_000_000 {
		return time.Time{}
	}
	t -= unixEpoch
	return time.Unix(int64(t/10_000_000), int64(t%10_000_000)*100).UTC()
}

// unicode reads the UNICODE_STRING at an offset of r, whose text lies in as. Its pointer
// follows two lengths of two bytes, aligned.
func (r record) unicode(as *AddressSpace, off uint32) (string, error) {
	return readUTF16(as, r.ptr(off+r.word), uint32(r.u16(off)))
}

// unicodeSize is the size of a UNICODE_STRING.
func (as *AddressSpace) unicodeSize() uint32 { return 2 * as.ptr }

// readUTF16 reads n bytes of UTF-16. Half a surrogate pair becomes U+FFFD.
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
