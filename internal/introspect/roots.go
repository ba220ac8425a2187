package introspect

import (
	"encoding/binary"
	"slices"
)

// eachRoot calls try with every address space whose top-level table can be in the page at pa.
// Windows makes each top-level table map itself, which is how it is recognised. eachRoot stops
// if try returns true.
func eachRoot(t *tables, page []byte, pa uint64, try func(*AddressSpace) bool) {
	if selfMapped(page, pa) {
		// Only the tables below it distinguish a PML4 from a PML5.
		if try(newSpace(t, formatX64, pa)) || try(newSpace(t, formatLA57, pa)) {
			return
		}
	}
	if pa>>32 != 0 {
		return // CR3 has 32 bits
	}
	if selfMapped32(page, pa) && try(newSpace(t, formatX86, pa)) {
		return
	}
	for off := uint64(0); off < pageSize; off += 32 {
		// The low bits of the first entry rule most of them out.
		if page[off]&0xe7 == pteValid && selfMappedPAE(t, page[off:off+32]) && try(newSpace(t, formatPAE, pa+off)) {
			return
		}
	}
}

// selfMapped reports whether a page can be the top-level table of a 64-bit Windows: exactly
// one valid entry of its upper half refers to the page itself, and no valid entry has bits
// that the processor rejects.
func selfMapped(page []byte, pa uint64) bool {
	self := 0
	for i := 256; i < 512; i++ {
		e := binary.LittleEndian.Uint64(page[8*i:])
		if e&pteValid == 0 {
			continue
		}
		if e&pteLarge != 0 {
			return false // reserved in a PML4 entry
		}
		if e&pfnMask == pa {
			self++
		}
	}
	return self == 1 && pa != 0
}

// The 32-bit kernels map their page tables at 0xc0000000 (Windows Internals, 6th edition,
// part 2, chapter 10).
const tables32 = 0xc0000000

// selfMapped32 reports whether a page can be the page directory of a Windows without PAE:
// the entry for the page tables refers to the page itself.
func selfMapped32(page []byte, pa uint64) bool {
	e := binary.LittleEndian.Uint32(page[tables32>>22*4:])
	return e&(pteValid|pteLarge) == pteValid && uint64(e)&0xfffff000 == pa && pa != 0
}

// selfMappedPAE reports whether 32 bytes can be the four top-level entries of a Windows
// with PAE: the directory for the upper quarter begins with entries for the four
// directories themselves.
func selfMappedPAE(t *tables, quad []byte) bool {
	le := binary.LittleEndian
	var dirs [4]uint64
	for i := range dirs {
		e := le.Uint64(quad[8*i:])
		// Rights and the bits above the frame are reserved in these entries.
		if e&(pteValid|pteWrite|pteUser|pteLarge) != pteValid || e&^uint64(pfnMask) > 0xfff || e&pfnMask == 0 {
			return false
		}
		if dirs[i] = e & pfnMask; slices.Contains(dirs[:i], dirs[i]) {
			return false
		}
	}
	for i, dir := range dirs {
		e, err := t.entry(dirs[tables32>>30]+8*uint64(i), 8)
		if err != nil || e&(pteValid|pteLarge) != pteValid || e&pfnMask != dir {
			return false
		}
	}
	return true
}
