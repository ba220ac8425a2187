package pe

import "encoding/binary"

// onesSum adds up b as little-endian 16-bit words and returns the sum modulo
// 65535, which is what end-around carry makes of it.
//
// It adds 64-bit words. 2^32 is 1 modulo 65535, so what counts is the sum of the
// upper halves and that of the lower ones; the lower one is left over when the
// upper is taken from the plain sum, so that each word costs two additions and a
// shift.
func onesSum(b []byte) uint64 {
	le := binary.LittleEndian
	var all0, all1, all2, all3, high0, high1, high2, high3 uint64
	for len(b) >= 32 {
		v0, v1, v2, v3 := le.Uint64(b), le.Uint64(b[8:]), le.Uint64(b[16:]), le.Uint64(b[24:32])
		all0 += v0
		all1 += v1
		all2 += v2
		all3 += v3
		high0 += v0 >> 32
		high1 += v1 >> 32
		high2 += v2 >> 32
		high3 += v3 >> 32
		b = b[32:]
	}
	for len(b) > 0 {
		var word [8]byte
		n := copy(word[:], b)
		v := le.Uint64(word[:])
		all0 += v
		high0 += v >> 32
		b = b[n:]
	}
	fold := func(all, high uint64) uint64 { return (all-high<<32)%65535 + high%65535 }
	return (fold(all0, high0) + fold(all1, high1) + fold(all2, high2) + fold(all3, high3)) % 65535
}

// residue returns the contribution of bytes at a file offset to the sum, modulo 65535.
func residue(b []byte, off uint64) uint64 {
	v := onesSum(b)
	if off%2 == 1 {
		v *= 256 // it stands in the other half of the words
	}
	return v % 65535
}

// CheckSum computes the checksum of a PE file as CheckSumMappedFile does: the 16-bit one's
// complement sum of all words except those of the CheckSum field, which is at file offset
// field, plus the length of the file.
func CheckSum(file []byte, field int) uint32 {
	sum := onesSum(file)
	if field >= 0 && field+4 <= len(file) {
		sum = (sum + 65535 - residue(file[field:field+4], uint64(field))) % 65535
	}
	return sumToCheckSum(sum, len(file))
}

// sumToCheckSum returns the checksum for a sum of all words modulo 65535.
func sumToCheckSum(sum uint64, size int) uint32 {
	if sum == 0 {
		// Zero and 65535 are the same residue; only a file of zeros sums to plain zero.
		sum = 65535
	}
	return uint32(sum) + uint32(size)
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
