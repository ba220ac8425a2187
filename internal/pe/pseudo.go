package pe

import (
	"bytes"
	"encoding/binary"
)

// pseudoRelocHeader begins the second version of the list of run-time relocations
// that GNU ld makes for data imported without saying so (mingw-w64's
// pseudo-reloc.c): two zero words and the version.
var pseudoRelocHeader = []byte{0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0}

const pseudoRelocSize = 12

// restorePseudoRelocs undoes the relocations that a program made by GNU ld
// applies to itself at start. Each entry names an import address slot and a word:
// what the start code adds to the word is the imported address minus the address
// of the slot, and both are still there. It must come after the address tables
// are restored in the file, for it reads the bound ones in the image.
func (r *Rebuilder) restorePseudoRelocs() {
	if !r.hdr.madeByGNU() || r.fid.Imports.Restored == 0 {
		return
	}
	for i := range r.hdr.Sections {
		s := &r.hdr.Sections[i]
		if s.Name != ".rdata" {
			continue
		}
		if at, ok := r.findPseudoRelocs(uint64(s.VirtualAddress), uint64(s.VirtualSize)); ok {
			r.fid.Imports.Runtime += r.pseudoRelocList(at)
			return // there is one list in an image
		}
	}
}

// findPseudoRelocs finds the first entry of the list. The linker's script puts
// it at the end of .rdata, so that it is found by going back over what look like
// entries until the header is met; up to 64 bytes of padding may follow it.
func (r *Rebuilder) findPseudoRelocs(rva, size uint64) (uint64, bool) {
	end := min(rva+size, uint64(len(r.img.Mem))) &^ 3
	for pad := uint64(0); pad <= 64 && rva+pad < end; pad += 4 {
		for at := end - pad; at >= rva+pseudoRelocSize && at-rva <= size && r.img.present(at-pseudoRelocSize, pseudoRelocSize); at -= pseudoRelocSize {
			b := r.img.Mem[at-pseudoRelocSize : at]
			if bytes.Equal(b, pseudoRelocHeader) {
				return at, at < end-pad
			}
			if bits := binary.LittleEndian.Uint32(b[8:]) & 0xff; bits != 8 && bits != 16 && bits != 32 && bits != 64 {
				break
			}
		}
	}
	return 0, false
}

// pseudoRelocList undoes the list at rva and returns how many of its entries
// changed something. The first entry that makes no sense ends the list.
func (r *Rebuilder) pseudoRelocList(rva uint64) (n int) {
	le := binary.LittleEndian
	for ; rva%4 == 0 && r.img.present(rva, pseudoRelocSize); rva += pseudoRelocSize {
		b := r.img.Mem[rva:]
		slot, target, size := uint64(le.Uint32(b)), uint64(le.Uint32(b[4:])), uint64(le.Uint32(b[8:])&0xff)/8
		if size != 1 && size != 2 && size != 4 && size != 8 || slot == 0 || target == 0 {
			return n
		}
		if !r.isImportSlot(slot) || !r.img.present(target, size) {
			return n
		}
		if r.pseudoReloc(slot, target, size) {
			n++
		}
	}
	return n
}

// isImportSlot reports whether the word at rva holds an address outside the image
// while the file has something else there: an import that was bound.
func (r *Rebuilder) isImportSlot(rva uint64) bool {
	ps := uint64(r.hdr.ptrSize())
	off, ok := r.lay.offset(rva, ps)
	if !ok || !r.img.present(rva, ps) {
		return false
	}
	v := getUint(r.img.Mem[rva : rva+ps])
	return v != 0 && !r.inImage(v) && v != getUint(r.data[off:off+ps])
}

// pseudoReloc undoes one entry. A word that already refers to its slot has not
// been relocated, and one that would not after undoing it is left alone.
func (r *Rebuilder) pseudoReloc(slot, target, size uint64) bool {
	ps := uint64(r.hdr.ptrSize())
	now := getUint(r.img.Mem[target : target+size])
	added := getUint(r.img.Mem[slot:slot+ps]) - (r.img.Base + slot)
	was := now - added
	if r.refersTo(now, slot, target, size) || !r.refersTo(was, slot, target, size) {
		return false
	}
	var b [8]byte
	putUint(b[:size], was)
	return r.put(target, b[:size])
}

// refersTo reports whether a word of the file at target points at slot or near it,
// absolutely or relative to the instruction that it ends.
func (r *Rebuilder) refersTo(v, slot, target, size uint64) bool {
	const near = 1 << 20 // the addend: an index into an imported array
	mask := ^uint64(0) >> (64 - 8*size)
	if size < 4 {
		return true // too small to tell
	}
	for _, from := range []uint64{r.img.Base + slot, slot - target - size} {
		if d := (v - from + near) & mask; d < 2*near {
			return true
		}
	}
	return false
}
