package pe

import (
	"bytes"
	"encoding/binary"
)

// Kinds of dynamic relocations, by the Symbol field of IMAGE_DYNAMIC_RELOCATION
// (winnt.h). Values of dynAddress and above are not kinds but addresses: defaults
// of kernel variables such as the base of the page tables, which the kernel
// replaces by where it has put them.
const (
	dynImportTransfer   = 3 // IMAGE_DYNAMIC_RELOCATION_GUARD_IMPORT_CONTROL_TRANSFER
	dynIndirectTransfer = 4 // IMAGE_DYNAMIC_RELOCATION_GUARD_INDIR_CONTROL_TRANSFER
	dynSwitchBranch     = 5 // IMAGE_DYNAMIC_RELOCATION_GUARD_SWITCHTABLE_BRANCH
	dynARM64X           = 6 // IMAGE_DYNAMIC_RELOCATION_ARM64X
	dynOverride         = 7 // IMAGE_DYNAMIC_RELOCATION_FUNCTION_OVERRIDE
	dynAddress          = 0x10000
)

// maxDynTables bounds the tables of one image; real ones have less than ten.
const maxDynTables = 64

// undoDynamicRelocations undoes what a kernel applies from the dynamic value relocation
// table: indirect calls and jumps that were rewritten as retpolines, calls of functions
// that have a variant for this processor, addresses of kernel structures that are
// randomised, and what turns an image for one processor into one for another. It is called
// before base relocations are undone, because it writes words relative to the actual base.
// Everything it writes is reconstructed and recorded as in doubt.
func (r *Rebuilder) undoDynamicRelocations() {
	c, ok := r.readLoadConfig()
	if !ok || uint32(len(c.b)) < c.off.dynSection+2 {
		return
	}
	le := binary.LittleEndian
	at, sect := uint64(le.Uint32(c.b[c.off.dynOffset:])), int(le.Uint16(c.b[c.off.dynSection:]))
	if at == 0 || sect == 0 || sect > len(r.hdr.Sections) {
		return
	}
	at += uint64(r.hdr.Sections[sect-1].VirtualAddress)
	if !r.img.present(at, 8) || le.Uint32(r.img.Mem[at:]) != 1 {
		return // of the second version no use is known on these processors
	}
	end := min(at+8+uint64(le.Uint32(r.img.Mem[at+4:])), uint64(len(r.img.Mem)))
	head := uint64(r.hdr.ptrSize()) + 4
	at += 8
	for n := 0; n < maxDynTables && at+head <= end && r.img.present(at, head); n++ {
		symbol := getUint(r.img.Mem[at : at+head-4])
		size := uint64(le.Uint32(r.img.Mem[at+head-4:]))
		from := at + head
		at = from + size
		if size > end-from {
			return
		}
		w := relocWalker{img: r.img, sizeImage: uint64(len(r.img.Mem)), rva: from, end: at}
		switch {
		case symbol == dynImportTransfer && r.hdr.Machine == machineAMD64:
			r.undoImportTransfers(&w)
		case symbol == dynIndirectTransfer && r.hdr.Machine == machineAMD64:
			r.undoIndirectTransfers(&w, c.field(c.off.dispatch))
		case symbol == dynSwitchBranch && r.hdr.Machine == machineAMD64:
			r.undoSwitchBranches(&w)
		case symbol == dynARM64X:
			r.undoARM64X(&w)
		case symbol == dynOverride && r.hdr.Machine == machineAMD64:
			r.undoOverrides(from, at)
		case symbol >= dynAddress:
			r.undoMovedAddresses(&w, symbol)
		}
	}
}

// undoMovedAddresses sets words back that hold an address in a kernel structure
// whose default is symbol. How far the structure was moved is the same for all of
// them; it is taken from the words, provided that they all lie in one page.
func (r *Rebuilder) undoMovedAddresses(w *relocWalker, symbol uint64) {
	ps := uint64(r.hdr.ptrSize())
	var words []uint64
	var page uint64
	for rva, kind := range w.entries() {
		if relocSize(kind) != ps || !r.img.present(rva, ps) {
			continue
		}
		now := getUint(r.img.Mem[rva:rva+ps]) &^ (PageSize - 1)
		if len(words) > 0 && now != page || len(words) >= 1<<16 {
			return
		}
		page = now
		words = append(words, rva)
	}
	if len(words) == 0 || page == symbol&^(PageSize-1) {
		return
	}
	var b [8]byte
	for _, rva := range words {
		putUint(b[:ps], getUint(r.img.Mem[rva:rva+ps])-page+symbol&^(PageSize-1))
		r.putDoubtful(rva, b[:ps])
	}
}

// putDoubtful writes bytes that follow from analysis and records them as in doubt.
func (r *Rebuilder) putDoubtful(rva uint64, b []byte) {
	off, ok := r.lay.offset(rva, uint64(len(b)))
	if !ok || bytes.Equal(r.data[off:off+uint64(len(b))], b) || !r.write(rva, b) {
		return
	}
	r.fid.Relocations.Dynamic++
	r.fid.Bytes.Reconstructed += uint64(len(b))
	r.unknown(off, off+uint64(len(b)), CauseDynamic)
}
