package pe

import (
	"encoding/binary"
	"math/bits"
)

// onesSum adds up b as little-endian words with end-around carry and returns the
// sum as a number congruent to it modulo 65535. 2^64-1 is a multiple of 65535, so
// adding 64-bit words with end-around carry keeps the residue.
func onesSum(b []byte) uint64 {
	le := binary.LittleEndian
	var s0, s1, s2, s3, c uint64
	for len(b) >= 32 {
		// A carry out of one lane weighs the same in the next: 2^64 is 1 modulo 65535.
		s0, c = bits.Add64(s0, le.Uint64(b), c)
		s1, c = bits.Add64(s1, le.Uint64(b[8:]), c)
		s2, c = bits.Add64(s2, le.Uint64(b[16:]), c)
		s3, c = bits.Add64(s3, le.Uint64(b[24:]), c)
		b = b[32:]
	}
	s0, c = bits.Add64(s0, 0, c)
	s0 += c
	for len(b) >= 8 {
		s0, c = bits.Add64(s0, le.Uint64(b), 0)
		s0 += c
		b = b[8:]
	}
	if len(b) > 0 {
		var last [8]byte
		copy(last[:], b)
		s0, c = bits.Add64(s0, le.Uint64(last[:]), 0)
		s0 += c
	}
	return (s0%65535 + s1%65535 + s2%65535 + s3%65535) % 65535
}

// CheckSum computes the checksum of a PE file as CheckSumMappedFile does: the
// 16-bit one's complement sum of all words but those of the CheckSum field at
// file offset field, plus the length of the file.
func CheckSum(file []byte, field int) uint32 {
	sum := onesSum(file)
	if field >= 0 && field+4 <= len(file) {
		v := uint64(binary.LittleEndian.Uint32(file[field:]))
		if field%2 == 1 {
			v *= 256
		}
		sum = (sum + 65535 - v%65535) % 65535
	}
	if sum == 0 {
		// Zero and 65535 are the same residue; only a file of zeros sums to plain zero.
		sum = 65535
	}
	return uint32(sum) + uint32(len(file))
}

// strhash is the string hash GNU ld derives the base of a DLL from when it is
// told to choose one (ld/emultempl/pe.em). Only its low bits are used there, and
// those are the same whether the host's long has 32 or 64 bits.
func strhash(s string) uint32 {
	var h uint64
	for i := 0; i < len(s); i++ {
		c := uint64(s[i])
		h += c + c<<17
		h ^= h >> 2
	}
	n := uint64(len(s))
	h += n + n<<17
	return uint32(h ^ h>>2)
}
