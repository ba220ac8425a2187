package pe

import "encoding/binary"

// overrideRel32 is IMAGE_FUNCTION_OVERRIDE_X64_REL32: the place holds the distance to the
// function from its own end.
const overrideRel32 = 1

// maxOverrides bounds the variants of one function.
const maxOverrides = 256

// undoOverrides sets calls of functions that have variants for some processors back to the
// function that the file calls. The table at RVA from begins with the size of what follows:
// for each function its RVA, the sizes of the list of its variants and of the relocations
// of what refers to it, then both (IMAGE_FUNCTION_OVERRIDE_HEADER and
// IMAGE_FUNCTION_OVERRIDE_DYNAMIC_RELOCATION of winnt.h). A place is set back only if it
// leads to one of the variants now.
func (r *Rebuilder) undoOverrides(from, end uint64) {
	le := binary.LittleEndian
	if end-from < 4 || !r.img.present(from, 4) {
		return
	}
	end = min(end, from+4+uint64(le.Uint32(r.img.Mem[from:])))
	const head = 16
	for at := from + 4; at+head <= end && r.img.present(at, head); {
		b := r.img.Mem[at:]
		function, count, size := uint64(le.Uint32(b)), uint64(le.Uint32(b[8:]))/4, uint64(le.Uint32(b[12:]))
		variants := at + head
		relocs := variants + 4*count
		if count > maxOverrides || relocs > end || size > end-relocs || !r.img.present(variants, 4*count) {
			return
		}
		at = relocs + size
		known := r.img.Mem[variants:relocs]
		w := relocWalker{img: r.img, sizeImage: uint64(len(r.img.Mem)), rva: relocs, end: at}
		for rva, kind := range w.entries() {
			if kind != overrideRel32 || !r.img.present(rva, 4) {
				continue
			}
			to := uint32(rva+4) + le.Uint32(r.img.Mem[rva:])
			if !holdsWord(known, to) {
				continue
			}
			r.putDoubtful(rva, le.AppendUint32(nil, uint32(function)-uint32(rva+4)))
		}
	}
}

// holdsWord reports whether a list of 32-bit words has one of a value.
func holdsWord(list []byte, v uint32) bool {
	for ; len(list) >= 4; list = list[4:] {
		if binary.LittleEndian.Uint32(list) == v {
			return true
		}
	}
	return false
}
