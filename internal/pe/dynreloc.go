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
	dynImportTransfer = 3
	dynAddress        = 0x10000
)

// maxDynTables bounds the tables of one image; real ones have less than ten.
const maxDynTables = 64

// undoDynamicRelocations undoes what a kernel applies from the dynamic value
// relocation table: calls through the import address table that were rewritten as
// retpolines, and addresses of kernel structures that are randomised. It comes
// before the base relocations, as it writes words in terms of the actual base.
// Everything it writes is reconstructed and is recorded as in doubt.
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
		case symbol >= dynAddress:
			r.undoMovedAddresses(&w, symbol)
		}
	}
}

// undoImportTransfers turns retpolines back into the calls and jumps that the
// file has. An entry is a word: page offset (12 bits), whether it is a call, and
// the index of the import slot (19 bits). In the file there is
//
//	call [rip+slot]; nop dword [rax+rax]   or   jmp [rip+slot]; int3 …
//
// and in memory, if the processor needs it,
//
//	mov r10, [rip+slot]; call stub         or   mov r10, [rip+slot]; jmp stub
//
// 12 bytes in either form ("Mitigating Spectre variant 2 with Retpoline on
// Windows", Microsoft).
func (r *Rebuilder) undoImportTransfers(w *relocWalker) {
	le := binary.LittleEndian
	const length = 12
	iat := uint64(r.hdr.Dirs[dirIAT].RVA)
	for {
		blk, ok := w.next()
		if !ok {
			return
		}
		for e := blk.entries; len(e) >= 4; e = e[4:] {
			v := le.Uint32(e)
			rva := blk.page + uint64(v&0xfff)
			if !r.img.present(rva, length) {
				continue
			}
			b := r.img.Mem[rva : rva+length]
			slot := iat + uint64(v>>13)*8
			disp := uint32(slot - (rva + 7))
			if b[0] != 0x4c || b[1] != 0x8b || b[2] != 0x15 || le.Uint32(b[3:]) != disp {
				continue
			}
			was := [length]byte{0x48, 0xff, 0x15, 0, 0, 0, 0, 0x0f, 0x1f, 0x44, 0, 0}
			want := byte(0xe8)
			if v>>12&1 == 0 {
				was = [length]byte{0x48, 0xff, 0x25, 0, 0, 0, 0, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc}
				want = 0xe9
			}
			if le.PutUint32(was[3:], disp); b[7] == want {
				r.putDoubtful(rva, was[:])
			}
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
	for {
		blk, ok := w.next()
		if !ok {
			break
		}
		for e := blk.entries; len(e) >= 2; e = e[2:] {
			v := binary.LittleEndian.Uint16(e)
			rva := blk.page + uint64(v&0xfff)
			if t := v >> 12; relocSize(t) != ps || !r.img.present(rva, ps) {
				continue
			}
			now := getUint(r.img.Mem[rva:rva+ps]) &^ (PageSize - 1)
			if len(words) > 0 && now != page || len(words) >= 1<<16 {
				return
			}
			page = now
			words = append(words, rva)
		}
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
