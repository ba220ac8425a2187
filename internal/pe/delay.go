package pe

import (
	"bytes"
	"encoding/binary"
	"slices"
)

// delayThunk is a stub that loads the address of a delay-load slot and jumps to the
// resolver. In the file the slot points to it.
type delayThunk struct {
	slot, code uint64 // RVAs
}

// delayDescriptor is an IMAGE_DELAYLOAD_DESCRIPTOR with its fields as RVAs.
type delayDescriptor struct {
	handle, addrs, names, unload uint64
}

const delayDescriptorSize = 32

// restoreDelayImports sets delay-load slots that the program has resolved back to
// their stubs, and the module handles back to zero. A slot that was not resolved
// points into the image already and is a relocated word like any other.
func (r *Rebuilder) restoreDelayImports() {
	rva := uint64(r.hdr.Dirs[dirDelayImport].RVA)
	if rva == 0 || r.hdr.NumDirs <= dirDelayImport {
		return
	}
	ps := uint64(r.hdr.ptrSize())
	budget := len(r.img.Mem) / int(ps)
	scanned := false
	r.foreignDone = false
	r.thunks = r.thunks[:0]
	for n := 0; n < maxImportModules && budget > 0; n++ {
		d, ok := r.readDelay(rva)
		if !ok {
			if !r.img.present(rva, delayDescriptorSize) {
				r.doubtForeign()
			}
			return
		}
		rva += delayDescriptorSize
		budget--
		r.restoreDelayHandle(d.handle)
		count, whole := r.thunkRun(d.names, budget)
		budget -= count
		if !whole {
			r.doubtForeign()
		}
		for i := uint64(0); i < uint64(count); i++ {
			slot := d.addrs + i*ps
			if !r.img.present(slot, ps) {
				continue
			}
			va := getUint(r.img.Mem[slot : slot+ps])
			if r.inImage(va) || va == 0 {
				continue
			}
			thunk := uint64(0)
			if d.unload != 0 && r.img.present(d.unload+i*ps, ps) {
				thunk = getUint(r.img.Mem[d.unload+i*ps : d.unload+(i+1)*ps])
			}
			if !r.inImage(thunk) {
				if !scanned {
					r.findThunks()
					scanned = true
				}
				if thunk = r.thunkOf(slot); thunk != 0 {
					thunk += r.img.Base
				}
			}
			if thunk == 0 {
				r.unresolved(slot, 1, CauseDelay)
				continue
			}
			var b [8]byte
			putUint(b[:ps], thunk)
			if r.put(slot, b[:ps]) {
				r.fid.Imports.Delay++
			}
		}
	}
}

// doubtForeign records as in doubt every relocated word that does not point into
// the image or near it: with the delay-load tables missing, it may be a slot that
// was resolved.
func (r *Rebuilder) doubtForeign() {
	if r.foreignDone {
		return
	}
	r.foreignDone = true
	ps := uint64(r.hdr.ptrSize())
	low, high := r.img.Base-min(guessMargin, r.img.Base), r.img.Base+uint64(len(r.img.Mem))+guessMargin
	w := newRelocWalker(r.img, &r.hdr)
	for rva, kind := range w.entries() {
		if relocSize(kind) != ps || !r.img.present(rva, ps) {
			continue
		}
		if va := getUint(r.img.Mem[rva : rva+ps]); va < low || va > high {
			if off, in := r.lay.offset(rva, ps); in {
				r.unknown(off, off+ps, CauseDelay)
			}
		}
	}
}

func (r *Rebuilder) readDelay(rva uint64) (d delayDescriptor, ok bool) {
	if !r.img.present(rva, delayDescriptorSize) {
		return d, false
	}
	le := binary.LittleEndian
	b := r.img.Mem[rva:]
	var f [8]uint64
	for i := range f {
		f[i] = uint64(le.Uint32(b[4*i:]))
	}
	if f[1] == 0 {
		return d, false
	}
	if f[0]&1 == 0 && !r.hdr.PE64 {
		// The first version of the format, of Visual C++ 6, has addresses in place of RVAs.
		for i := 1; i < 7; i++ {
			if f[i] != 0 {
				f[i] = (f[i] - r.img.Base) & 0xffffffff
			}
		}
	}
	return delayDescriptor{handle: f[2], addrs: f[3], names: f[4], unload: f[6]}, true
}

func (r *Rebuilder) restoreDelayHandle(rva uint64) {
	ps := uint64(r.hdr.ptrSize())
	if rva == 0 || !r.img.present(rva, ps) || getUint(r.img.Mem[rva:rva+ps]) == 0 {
		return
	}
	var zero [8]byte
	r.put(rva, zero[:ps])
}

func (r *Rebuilder) inImage(va uint64) bool {
	return va >= r.img.Base && va-r.img.Base < uint64(len(r.img.Mem))
}

// findThunks collects the stubs of all executable sections: on x64
//
//	lea rax, [rip+slot]; jmp resolver
//
// and on x86
//
//	mov eax, offset slot; jmp resolver
//
// which is what both Microsoft's and GNU's tools emit.
func (r *Rebuilder) findThunks() {
	m, le := r.img.Mem, binary.LittleEndian
	for _, c := range r.lay.code {
		from, to := c.Start, c.End
		lead, imm := []byte{0x48, 0x8d, 0x05}, uint64(3)
		if !r.hdr.PE64 {
			lead, imm = []byte{0xb8}, 1
		}
		for at := from; at < to; at++ {
			n := bytes.Index(m[at:to], lead)
			if n < 0 {
				break
			}
			at += uint64(n)
			if at+imm+5 > to {
				break
			}
			if m[at+imm+4] != 0xe9 {
				continue
			}
			v := le.Uint32(m[at+imm:])
			slot := uint64(v) - r.img.Base&0xffffffff
			if r.hdr.PE64 {
				slot = at + imm + 4 + uint64(int64(int32(v)))
			}
			if slot < uint64(len(m)) && len(r.thunks) < 1<<16 {
				r.thunks = append(r.thunks, delayThunk{slot, at})
			}
		}
	}
	slices.SortFunc(r.thunks, func(a, b delayThunk) int {
		if c := compareU64(a.slot, b.slot); c != 0 {
			return c
		}
		return compareU64(a.code, b.code)
	})
}

// thunkOf returns the RVA of the stub of a slot, 0 if there is none or more than one.
func (r *Rebuilder) thunkOf(slot uint64) uint64 {
	i, ok := slices.BinarySearchFunc(r.thunks, slot, func(t delayThunk, s uint64) int { return compareU64(t.slot, s) })
	if !ok || i+1 < len(r.thunks) && r.thunks[i+1].slot == slot {
		return 0
	}
	return r.thunks[i].code
}
