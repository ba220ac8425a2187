package pe

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"
)

// restoreBase finds the preferred base, undoes the relocations with it and puts it into the
// header.
//
// The ImageBase of a mapped header is the actual base and not the one that the image was
// linked for. Everything undone before was undone relative to the actual base, so at this
// point the file differs from the original only in relocated words and in ImageBase. The
// checksum is linear in the difference of the bases, which makes it cheap to test a
// candidate.
func (r *Rebuilder) restoreBase() {
	b := &r.fid.Base
	b.Actual = r.img.Base
	b.Preferred, b.Method = r.findBase()
	delta := b.Actual - b.Preferred
	r.undoRelocations(delta)
	off, size := r.hdr.imageBaseField()
	r.fid.baseField = Range{uint64(off), uint64(off) + uint64(size)}
	if uint64(off)+uint64(size) <= uint64(len(r.data)) {
		putUint(r.data[off:off+uint32(size)], b.Preferred)
		if r.madeUp {
			r.unknown(uint64(off), uint64(off)+uint64(size), CauseHeader)
		}
		if r.hdr.ImageBase != b.Preferred {
			r.fid.Bytes.Restored += uint64(size)
		}
	}
	switch b.Method {
	case BaseCache, BaseChecksum, BaseLoader, BaseFixed:
		b.Proven = true
	case BasePointers:
		b.Proven = b.Evidence >= 16
	}
}

// findBase returns the most credible preferred base.
func (r *Rebuilder) findBase() (uint64, BaseMethod) {
	h := &r.hdr
	b := &r.fid.Base
	if r.madeUp {
		// Such headers do not tell whether the image could be moved.
		if v := r.opt.PreferredBase; v != 0 {
			return v, BaseLoader
		}
		return r.img.Base, BaseUndecided
	}
	if !r.fid.Headers.own() && r.hdr.Dirs[dirBaseReloc].RVA == 0 && r.opt.PreferredBase == 0 {
		return r.img.Base, BaseUndecided
	}
	r.solved = false
	if v, ok := r.cachedBase(); ok {
		return v, BaseCache
	}
	r.solver, r.solved = r.newSumSolver()
	if !r.movable() {
		return r.img.Base, BaseFixed
	}
	if v := r.opt.PreferredBase; v != 0 && r.solved && r.solver.matches(r.img.Base, v) {
		b.Tried = 1
		return v, BaseChecksum
	}
	candidates := r.candidates()
	b.Tried = len(candidates)
	if r.solved {
		for _, c := range candidates {
			if r.solver.matches(r.img.Base, c) {
				return c, BaseChecksum
			}
		}
	}
	if v := r.opt.PreferredBase; v != 0 {
		return v, BaseLoader
	}
	if h.ImageBase != r.img.Base && h.ImageBase != 0 && h.ImageBase%0x10000 == 0 {
		return h.ImageBase, BaseHeader
	}
	if v, n := r.pointerBase(candidates); v != 0 {
		b.Evidence = n
		return v, BasePointers
	}
	if r.unmoved(candidates) {
		return r.img.Base, BaseDefault
	}
	if v, ok := r.solveBase(); ok {
		return v, BaseSolved
	}
	if h.madeByGNU() && h.Characteristics&fileDLL != 0 {
		if names := r.nameBases(); len(names) > 0 {
			return names[0], BaseName
		}
	}
	if v, ok := r.defaultBase(); ok {
		return v, BaseDefault
	}
	return r.img.Base, BaseUndecided
}

// solveBase finds the 32-bit base for which the checksum is right. This is one equation
// with one unknown, so nothing is left to prove the result, and it holds only if every
// other byte is the file's.
func (r *Rebuilder) solveBase() (base uint64, ok bool) {
	if !r.solved || r.hdr.PE64 || !r.img.PrivateKnown || r.solver.weight == 0 {
		return 0, false
	}
	for i := range r.hdr.Sections {
		if s := &r.hdr.Sections[i]; s.Writable() && s.RawSize != 0 && s.RawOffset != 0 && r.mayBeWritten(s) {
			return 0, false
		}
	}
	for v := uint64(0x10000); v < 1<<32; v += 0x10000 {
		if r.solver.matches(r.img.Base, v) {
			if ok {
				return 0, false // two solutions are none
			}
			base, ok = v, true
		}
	}
	return base, ok
}

// movable reports whether the image could have been loaded anywhere but at its
// preferred base.
func (r *Rebuilder) movable() bool {
	h := &r.hdr
	if h.Characteristics&fileRelocsStripped != 0 {
		return false
	}
	// A program without relocations stays unless it declares that it may move; a
	// DLL without any (resources, mostly) has nothing that would keep it in place.
	const dynamicBase = 0x40
	return h.Dirs[dirBaseReloc].RVA != 0 && h.Dirs[dirBaseReloc].Size != 0 ||
		h.DLLCharacteristics&dynamicBase != 0 || h.Characteristics&fileDLL != 0
}

// unmoved reports whether the actual base is one that linkers choose and address space
// layout randomisation does not.
func (r *Rebuilder) unmoved(candidates []uint64) bool {
	base := r.img.Base
	for _, c := range candidates {
		if c == base && (base != r.hdr.ImageBase || slices.Contains(linkerBases, base) || slices.Contains(r.nameBases(), base)) {
			return true
		}
	}
	// 64-bit DLLs are moved to the top of the user address space (Windows 7:
	// 0x7fe'f0000000, later 0x7ff'00000000) or, those of the system, below 4 GiB.
	return r.hdr.PE64 && r.hdr.Characteristics&fileDLL != 0 && base > 1<<32 && base < 0x7f000000000
}

// candidates lists bases worth testing against the checksum, best first.
func (r *Rebuilder) candidates() []uint64 {
	var c []uint64
	add := func(v uint64) {
		if v == 0 && !r.hdr.efi() || v%PageSize != 0 || !r.hdr.PE64 && v>>32 != 0 {
			return
		}
		for _, x := range c {
			if x == v {
				return
			}
		}
		c = append(c, v)
	}
	add(r.opt.PreferredBase)
	add(r.hdr.ImageBase)
	for _, v := range r.opt.BaseCandidates {
		if len(c) < 64 {
			add(v)
		}
	}
	if v, ok := r.defaultBase(); ok {
		add(v)
	}
	if r.hdr.efi() {
		return c
	}
	if r.hdr.Subsystem == subsystemNative && !r.hdr.PE64 {
		add(0x10000) // drivers
	}
	for _, v := range linkerBases {
		add(v)
	}
	for _, v := range r.nameBases() {
		add(v)
	}
	return c
}

// linkerBases are the default bases of linkers.
var linkerBases = []uint64{
	0x400000,    // EXE: Microsoft, GNU, Borland, Go
	0x140000000, // x64 EXE: Microsoft, GNU, LLVM
	0x180000000, // x64 DLL
	0x10000000,  // DLL
	0x1c0000000, // x64 drivers of Windows 8 and later
	0x1000000,   // programs that came with Windows up to XP
	0x100000000, // x64 programs that came with Windows up to 7
	0x11000000,  // Visual Basic DLL
	0x68000000, 0x6d000000,
	0x100400000, 0x200400000, // Cygwin
}

// subsystemNative is the subsystem of drivers and of programs without Win32.
const subsystemNative = 1

// efi reports whether the image is for firmware.
func (h *Headers) efi() bool { return h.Subsystem >= 10 && h.Subsystem <= 13 }

// defaultBase returns the default base of the linker that made the image.
func (r *Rebuilder) defaultBase() (uint64, bool) {
	h := &r.hdr
	dll := h.Characteristics&fileDLL != 0
	switch {
	case h.efi():
		return 0, true // linked for no address at all
	case h.Dirs[dirCLR].RVA != 0 && !h.PE64 && h.LinkerMajor < 48:
		return 0x400000, true // .NET compilers before Roslyn, DLLs too
	case h.PE64 && h.Subsystem == subsystemNative:
		return 0x140000000, true
	case h.Subsystem == subsystemNative:
		return 0x400000, true
	case h.PE64 && dll:
		return 0x180000000, true
	case h.PE64:
		return 0x140000000, true
	case dll:
		return 0x10000000, true
	}
	return 0x400000, true
}

// madeByGNU reports whether the linker version is one that GNU ld writes: its own,
// 2.15 and up. Microsoft's linkers of that major version are from before DLLs
// could be relocated at will.
func (h *Headers) madeByGNU() bool { return h.LinkerMajor == 2 && h.LinkerMinor >= 15 }

// nameBases returns the bases that GNU ld chooses for the names that the output file may
// have had, the likeliest first. gcc makes it do so with --enable-auto-image-base when it
// links a DLL. Range and mask are from ld/emultempl/pe.em and pep.em.
func (r *Rebuilder) nameBases() []uint64 {
	name := r.exportName()
	if name == "" {
		return nil
	}
	stem := strings.TrimSuffix(name, ".dll")
	paths := []string{name, ".libs/" + name, "./" + name, "bin/" + name}
	if b := r.img.Mem; bytes.HasPrefix(b[0x40:], []byte("Wine builtin DLL")) {
		// Wine marks its own in the DOS stub and builds them all in one tree.
		arch := "i386-windows/"
		if r.hdr.PE64 {
			arch = "x86_64-windows/"
		}
		paths = append([]string{"dlls/" + stem + "/" + arch + name, "dlls/" + stem + "/" + name}, paths...)
	}
	out := make([]uint64, 0, 2*len(paths))
	for _, path := range paths {
		hash := uint64(strhash(path))
		if r.hdr.PE64 {
			out = append(out, 0x1c0000000+hash<<16&0x1ffff0000, 0x400000000+hash<<16&0x1ffff0000)
		} else {
			out = append(out, 0x61500000+hash<<16&0x0ffc0000, 0x61300000+hash<<16&0x0ffc0000)
		}
	}
	return out
}

// exportName is the name the export directory gives the image, or "".
func (r *Rebuilder) exportName() string {
	d := r.hdr.Dirs[dirExport]
	if d.RVA == 0 || !r.img.present(uint64(d.RVA), 40) {
		return ""
	}
	name, _ := r.img.cString(uint64(binary.LittleEndian.Uint32(r.img.Mem[d.RVA+12:])), 255)
	return string(name)
}

// sumSolver tests preferred bases against the header's CheckSum without
// rebuilding the file for each.
type sumSolver struct {
	sum    uint64 // residue of the file's words as if preferred at the actual base, modulo 65535
	weight uint64 // residue by which a delta of one changes it
	want   uint64 // residue of CheckSum minus the length
}

// checkSumUsable reports whether the header's CheckSum can prove anything: there must be
// one, no byte may be missing, and it may not cover more bytes than the rebuilt file has.
func (r *Rebuilder) checkSumUsable() bool {
	h, size := &r.hdr, r.lay.fileSize
	if h.CheckSum == 0 || len(r.headerCopy) > 0 && r.fid.Headers == HeadersMemory || !r.fid.Headers.own() ||
		uint64(h.checkSumField())+4 > size || h.hasOverlay(size) {
		return false
	}
	return uint64(h.CheckSum) >= size && uint64(h.CheckSum)-size <= 0xffff
}

// newSumSolver returns ok false where the checksum proves nothing, which is also
// the case if relocations are of kinds that do not add up.
func (r *Rebuilder) newSumSolver() (s sumSolver, ok bool) {
	h := &r.hdr
	if !r.checkSumUsable() || r.fid.Bytes.Missing != 0 || !r.overlayIn {
		return s, false
	}
	if !r.sumKnown {
		r.sum, r.sumKnown = onesSum(r.data), true
	}
	tail := uint64(h.CheckSum) - uint64(len(r.data))
	s.want = tail % 65535
	field := uint64(h.checkSumField())
	s.sum = (r.sum + 65535 - residue(r.data[field:field+4], field)) % 65535
	w := newRelocWalker(r.img, h)
	for {
		blk, more := w.next()
		if !more {
			break
		}
		e := blk.entries
		for i := 0; i+2 <= len(e); i += 2 {
			v := binary.LittleEndian.Uint16(e[i:])
			rva := blk.page + uint64(v&0xfff)
			switch t := v >> 12; t {
			case relAbsolute:
			case relHighLow, relDir64:
				off, in := r.lay.offset(rva, relocSize(t))
				if !in {
					continue
				}
				if s.weight++; off%2 == 1 {
					s.weight += 255
				}
			default:
				return s, false
			}
		}
	}
	// The header's ImageBase changes from its present value to the candidate.
	off, size := h.imageBaseField()
	if h.ImageBase != r.img.Base {
		now := getUint(r.data[off:off+uint32(size)]) % 65535
		s.sum = (s.sum + 65535 - now*oddWeight(off)%65535 + r.img.Base%65535*oddWeight(off)) % 65535
	}
	s.weight = (s.weight + oddWeight(off)) % 65535
	return s, true
}

func oddWeight(off uint32) uint64 {
	if off%2 == 1 {
		return 256
	}
	return 1
}

// after returns the sum when every relocated word, which is an address and does
// not wrap, goes from being relative to actual to being relative to preferred.
func (s *sumSolver) after(actual, preferred uint64) uint64 {
	d := (actual%65535 + 65535 - preferred%65535) % 65535
	return (s.sum + 65535 - s.weight*d%65535) % 65535
}

// matches reports whether a preferred base gives the wanted sum.
func (s *sumSolver) matches(actual, preferred uint64) bool {
	return s.after(actual, preferred) == s.want
}

// hasOverlay reports whether the headers place something behind end, the end of the last
// section in the file.
func (h *Headers) hasOverlay(end uint64) bool {
	d := h.Dirs[dirSecurity] // its RVA field is a file offset
	return h.NumDirs > dirSecurity && d.Size != 0 && uint64(d.RVA)+uint64(d.Size) > end ||
		h.Symbols != 0 && h.SymbolTable != 0 && uint64(h.SymbolTable)+18*uint64(h.Symbols) > end
}
