package pe

import "encoding/binary"

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

// undoIndirectTransfers turns retpolines back into calls and jumps by way of rax. An entry
// is 16 bits: page offset (12 bits), whether it is a call, whether the instruction has a REX
// prefix, and whether control flow guard checks it. In the file there is one of
//
//	call rax; nop dword [rax]   jmp rax; int3 …   call [rip+slot]   jmp [rip+slot]
//
// with slot that of the guard's dispatch function, and in memory a near call or jump to a
// stub (LLVM, "import call optimization" for x64, names the forms that linkers emit).
func (r *Rebuilder) undoIndirectTransfers(w *relocWalker, slot uint64) {
	for rva, bits := range w.entries() {
		call, rex, checked := bits&1 != 0, bits&2 != 0, bits&4 != 0
		now := byte(0xe9)
		if call {
			now = 0xe8
		}
		if !r.img.present(rva, 7) || r.img.Mem[rva] != now {
			continue
		}
		var was []byte
		if rex {
			was = append(was, 0x48)
		}
		switch {
		case checked && r.inImage(slot):
			op := byte(0x25)
			if call {
				op = 0x15
			}
			was = append(was, 0xff, op)
			next := rva + uint64(len(was)) + 4
			was = binary.LittleEndian.AppendUint32(was, uint32(slot-r.img.Base-next))
		case checked:
			continue
		case call:
			was = append(was, 0xff, 0xd0, 0x0f, 0x1f, 0x00)
		default:
			for was = append(was, 0xff, 0xe0); len(was) < 5; {
				was = append(was, 0xcc)
			}
		}
		r.putDoubtful(rva, was)
	}
}

// undoSwitchBranches turns retpolines back into the jumps of jump tables. An entry is 16
// bits: page offset (12 bits) and the register that the jump goes by. In the file there is
// jmp reg, padded with int3 to the five bytes of the near jump in memory.
func (r *Rebuilder) undoSwitchBranches(w *relocWalker) {
	for rva, reg := range w.entries() {
		if !r.img.present(rva, 5) || r.img.Mem[rva] != 0xe9 {
			continue
		}
		var was []byte
		if reg >= 8 {
			was = append(was, 0x41)
		}
		for was = append(was, 0xff, 0xe0|byte(reg)&7); len(was) < 5; {
			was = append(was, 0xcc)
		}
		r.putDoubtful(rva, was)
	}
}
