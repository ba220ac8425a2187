package pe

import (
	"bytes"
	"encoding/binary"
)

// Defaults of the security cookie in a file, from the Visual C++ runtime
// (DEFAULT_SECURITY_COOKIE); GNU's start code uses the same.
const (
	cookieDefault64 = 0x00002B992DDFA232
	cookieDefault32 = 0xBB40E64E
)

// loadConfigOffsets are offsets of IMAGE_LOAD_CONFIG_DIRECTORY32 and 64 (winnt.h).
type loadConfigOffsets struct {
	cookie, guardTable, guardCount, guardFlags uint32
	check, dispatch                            uint32 // GuardCFCheckFunctionPointer, GuardCFDispatchFunctionPointer
	xfgCheck, xfgDispatch, xfgTable            uint32 // GuardXFG*FunctionPointer
	castGuard, memcpy                          uint32 // CastGuardOsDeterminedFailureMode, GuardMemcpyFunctionPointer
	dynOffset, dynSection                      uint32 // DynamicValueRelocTableOffset, -Section
}

var (
	loadConfig32 = loadConfigOffsets{0x3c, 0x50, 0x54, 0x58, 0x48, 0x4c, 0xac, 0xb0, 0xb4, 0xb8, 0xbc, 0x88, 0x8c}
	loadConfig64 = loadConfigOffsets{0x58, 0x80, 0x88, 0x90, 0x70, 0x78, 0x118, 0x120, 0x128, 0x130, 0x138, 0xe0, 0xe4}
)

// loadConfig is a view of the load configuration directory in memory.
type loadConfig struct {
	b   []byte
	off loadConfigOffsets
	ps  uint32
}

// field returns the pointer-sized field at o, 0 if the directory ends before it.
func (c *loadConfig) field(o uint32) uint64 {
	if uint64(o)+uint64(c.ps) > uint64(len(c.b)) {
		return 0
	}
	return getUint(c.b[o : o+c.ps])
}

func (r *Rebuilder) readLoadConfig() (c loadConfig, ok bool) {
	d := r.hdr.Dirs[dirLoadConfig]
	if d.RVA == 0 || r.hdr.NumDirs <= dirLoadConfig || !r.img.present(uint64(d.RVA), 4) {
		return c, false
	}
	// The directory's own size field is what the loader goes by; the data
	// directory's is 64 in old files whatever the truth.
	size := min(binary.LittleEndian.Uint32(r.img.Mem[d.RVA:]), 0x400)
	if !r.img.present(uint64(d.RVA), uint64(size)) {
		return c, false
	}
	c = loadConfig{b: r.img.Mem[d.RVA : uint64(d.RVA)+uint64(size)], off: loadConfig32, ps: 4}
	if r.hdr.PE64 {
		c.off, c.ps = loadConfig64, 8
	}
	return c, true
}

// restoreLoadConfig sets back what the loader writes through the load
// configuration and the TLS directory: security cookie, guard function pointers,
// TLS index.
func (r *Rebuilder) restoreLoadConfig() {
	r.restoreTLSIndex()
	c, ok := r.readLoadConfig()
	if !ok {
		// Relocated words that the loader has set are found when relocations are undone.
		if d := r.hdr.Dirs[dirLoadConfig]; r.hdr.NumDirs > dirLoadConfig && d.RVA != 0 {
			r.configLost = true
			r.doubtCookies()
		}
		return
	}
	r.restoreCookie(&c)
	if c.off.guardFlags+4 <= uint32(len(c.b)) {
		r.restoreGuards(&c)
	}
}

// restoreTLSIndex sets the TLS index back to zero, which is what linkers put there.
func (r *Rebuilder) restoreTLSIndex() {
	d := r.hdr.Dirs[dirTLS]
	ps := uint64(r.hdr.ptrSize())
	if d.RVA == 0 || r.hdr.NumDirs <= dirTLS || !r.img.present(uint64(d.RVA), 4*ps) {
		return
	}
	at := uint64(d.RVA) + 2*ps // AddressOfIndex
	va := getUint(r.img.Mem[at : at+ps])
	if !r.inImage(va) {
		return
	}
	rva := va - r.img.Base
	if !r.img.present(rva, 4) || binary.LittleEndian.Uint32(r.img.Mem[rva:]) == 0 {
		return
	}
	if !r.put(rva, []byte{0, 0, 0, 0}) {
		return
	}
	r.fid.Bytes.Reconstructed += 4
	// In a packed file the place is in the middle of what is packed, and then what
	// the file had there is lost.
	if s := r.lay.find(rva); s != nil && s.sect >= 0 && r.hdr.Sections[s.sect].Executable() {
		if off, in := r.lay.offset(rva, 4); in {
			r.unknown(off, off+4, CauseTLS)
		}
	}
}

// restoreCookie sets the security cookie to its default, and its complement
// where the runtime keeps one beside it.
func (r *Rebuilder) restoreCookie(c *loadConfig) {
	va := c.field(c.off.cookie)
	ps := uint64(c.ps)
	if !r.inImage(va) || !r.img.present(va-r.img.Base, ps) {
		return
	}
	rva := va - r.img.Base
	now := getUint(r.img.Mem[rva : rva+ps])
	mask, def := ^uint64(0), uint64(cookieDefault64)
	if ps == 4 {
		mask, def = 0xffffffff, cookieDefault32
	}
	if now == def {
		return
	}
	// A cookie is random but never zero; 64-bit ones have their top 16 bits clear.
	if now == 0 || ps == 8 && now>>48 != 0 {
		return
	}
	var b [8]byte
	putUint(b[:ps], def)
	if !r.put(rva, b[:ps]) {
		return
	}
	r.fid.LoadConfig.Cookie = true
	r.fid.Bytes.Reconstructed += ps
	for _, at := range []uint64{rva - ps, rva + ps} {
		if at < uint64(len(r.img.Mem)) && r.img.present(at, ps) && getUint(r.img.Mem[at:at+ps]) == ^now&mask {
			putUint(b[:ps], ^def)
			if r.put(at, b[:ps]) {
				r.fid.Bytes.Reconstructed += ps
			}
			return
		}
	}
}

// doubtCookies sets back what looks like a security cookie where the load configuration
// is lost that would tell its place: beside it the runtime keeps its complement. It is
// in doubt.
func (r *Rebuilder) doubtCookies() {
	if !r.hdr.PE64 {
		return // in 32 bits such pairs come about by chance
	}
	var b [16]byte
	for i := range r.lay.spans {
		s := &r.lay.spans[i]
		if s.sect < 0 || !r.hdr.Sections[s.sect].Writable() {
			continue
		}
		for rva := alignUp(s.rva, 8); rva+16 <= s.rva+s.n; rva += 8 {
			v, next := binary.LittleEndian.Uint64(r.img.Mem[rva:]), binary.LittleEndian.Uint64(r.img.Mem[rva+8:])
			if v != ^next || v == 0 || next == 0 || !r.img.present(rva, 16) {
				continue
			}
			def := uint64(cookieDefault64)
			if v>>48 != 0 { // the complement comes first
				def = ^def
			}
			binary.LittleEndian.PutUint64(b[:], def)
			binary.LittleEndian.PutUint64(b[8:], ^def)
			if r.put(rva, b[:]) {
				r.fid.Bytes.Reconstructed += 16
				off := s.off + rva - s.rva
				r.unknown(off, off+16, CauseGuard)
			}
		}
	}
}

// restoreGuards sets the control flow guard pointers back to the image's own
// functions that do nothing. The loader replaces them by functions of ntdll.
func (r *Rebuilder) restoreGuards(c *loadConfig) {
	f := &r.fid.LoadConfig
	ps := uint64(c.ps)
	dispatchSlot := c.field(c.off.dispatch)
	for _, g := range []struct {
		slot  uint64
		match func(rva uint64) bool
	}{
		{c.field(c.off.check), r.isCheckNop},
		{dispatchSlot, r.isDispatchNop},
		{c.field(c.off.xfgCheck), r.isCheckNop},
		{c.field(c.off.xfgDispatch), func(rva uint64) bool { return r.jumpsThrough(rva, dispatchSlot) }},
		{c.field(c.off.xfgTable), func(rva uint64) bool { return r.jumpsThrough(rva, dispatchSlot) }},
		{c.field(c.off.castGuard), nil}, // functions of the runtime's that nothing tells from others
		{c.field(c.off.memcpy), nil},
	} {
		if !r.inImage(g.slot) || !r.img.present(g.slot-r.img.Base, ps) {
			continue
		}
		rva := g.slot - r.img.Base
		now := getUint(r.img.Mem[rva : rva+ps])
		if now == 0 || r.inImage(now) {
			continue
		}
		target, n := uint64(0), 0
		if g.match != nil {
			if target, n = r.guardTarget(c, g.match); n != 1 {
				target, n = r.guardSearch(g.match)
			}
		}
		if n != 1 {
			// Of two equal stubs of the linker's the first is the likely one, of many
			// empty functions none.
			f.GuardUnknown++
			if off, in := r.lay.offset(rva, ps); in {
				r.unknown(off, off+ps, CauseGuard)
			}
			if n != 2 {
				continue
			}
		}
		var b [8]byte
		putUint(b[:ps], r.img.Base+target)
		if r.put(rva, b[:ps]) {
			f.GuardPointers++
			r.fid.Bytes.Reconstructed += ps
		}
	}
}

// guardTarget finds the first function of the guard function table that match
// accepts, and how many there are. The default functions are in it because their addresses are taken.
// Code linked incrementally has a jump in between.
func (r *Rebuilder) guardTarget(c *loadConfig, match func(rva uint64) bool) (found uint64, n int) {
	table, count := c.field(c.off.guardTable), c.field(c.off.guardCount)
	flags := binary.LittleEndian.Uint32(c.b[c.off.guardFlags:])
	stride := 4 + uint64(flags>>28) // IMAGE_GUARD_CF_FUNCTION_TABLE_SIZE_MASK
	if !r.inImage(table) {
		return 0, 0
	}
	for at := table - r.img.Base; count > 0 && r.img.present(at, 4); count, at = count-1, at+stride {
		rva := uint64(binary.LittleEndian.Uint32(r.img.Mem[at:]))
		target := rva
		if r.img.present(rva, 5) && r.img.Mem[rva] == 0xe9 {
			target = rva + 5 + uint64(int64(int32(binary.LittleEndian.Uint32(r.img.Mem[rva+1:]))))
		}
		if match(target) {
			if n++; n == 1 {
				found = rva
			}
		}
	}
	return found, n
}

// guardSearch does the same without the table: x64 ones are written
// in assembly, stand on a 16-byte boundary behind padding, and are the only code
// of their kind. Where the image is linked incrementally the pointer goes to the
// jump that leads there.
func (r *Rebuilder) guardSearch(match func(rva uint64) bool) (found uint64, n int) {
	if r.hdr.Machine != machineAMD64 {
		return 0, 0
	}
	for _, c := range r.lay.code {
		for rva := alignUp(max(c.Start, 16), 16); rva+16 <= c.End; rva += 16 {
			if b := r.img.Mem[rva]; (b == 0xff || b == 0xc2) && match(rva) && r.padded(rva) {
				if n++; n == 1 {
					found = rva
				}
			}
		}
	}
	if n == 1 {
		if jump, ok := r.jumpTo(found); ok {
			return jump, 1
		}
	}
	return found, n
}

// padded reports whether rva stands between padding: int3 or a long nop before,
// int3 within the next bytes.
func (r *Rebuilder) padded(rva uint64) bool {
	m := r.img.Mem
	before := m[rva-1] == 0xcc || m[rva-1] == 0 && m[rva-2] == 0
	return before && bytes.IndexByte(m[rva+2:rva+8], 0xcc) >= 0
}

// jumpTo finds the only jump of the incremental link table that leads to rva.
func (r *Rebuilder) jumpTo(rva uint64) (uint64, bool) {
	m := r.img.Mem
	var found uint64
	n := 0
	for _, c := range r.lay.code {
		from, end := c.Start, c.End
		// The table is a row of jumps: one stands right before or behind another.
		for at := from; at+10 <= end; at++ {
			j := bytes.IndexByte(m[at:end-9], 0xe9)
			if j < 0 {
				break
			}
			at += uint64(j)
			to := at + 5 + uint64(int64(int32(binary.LittleEndian.Uint32(m[at+1:]))))
			if to == rva && (m[at+5] == 0xe9 || at >= from+5 && m[at-5] == 0xe9) {
				found = at
				n++
			}
		}
	}
	return found, n == 1
}

func (r *Rebuilder) codeAt(rva uint64, n uint64) []byte {
	if !r.img.present(rva, n) {
		return nil
	}
	return r.img.Mem[rva : rva+n]
}

// isCheckNop recognises _guard_check_icall_nop: a return and padding.
func (r *Rebuilder) isCheckNop(rva uint64) bool {
	b := r.codeAt(rva, 4)
	if b == nil {
		return false
	}
	switch r.hdr.Machine {
	case machineAMD64:
		return b[0] == 0xc2 && b[1] == 0 && b[2] == 0
	case machineI386:
		return b[0] == 0xc3
	case machineARM64:
		return bytes.Equal(b, []byte{0xc0, 0x03, 0x5f, 0xd6}) // ret
	}
	return false
}

// isDispatchNop recognises _guard_dispatch_icall_nop: jmp rax.
func (r *Rebuilder) isDispatchNop(rva uint64) bool {
	b := r.codeAt(rva, 2)
	return b != nil && b[0] == 0xff && b[1] == 0xe0
}

// jumpsThrough recognises _guard_xfg_dispatch_icall_nop: jmp [slot].
func (r *Rebuilder) jumpsThrough(rva, slot uint64) bool {
	b := r.codeAt(rva, 6)
	return b != nil && b[0] == 0xff && b[1] == 0x25 && r.hdr.PE64 &&
		r.img.Base+rva+6+uint64(int64(int32(binary.LittleEndian.Uint32(b[2:])))) == slot
}
