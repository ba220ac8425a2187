package pe

import (
	"bytes"
	"encoding/binary"
)

// importDescriptor is an IMAGE_IMPORT_DESCRIPTOR; all fields but the time stamp are RVAs.
type importDescriptor struct {
	names    uint64 // OriginalFirstThunk
	bound    uint32 // TimeDateStamp: not 0 if bound at build time
	module   uint64 // Name
	addrs    uint64 // FirstThunk
	position uint64 // RVA of the descriptor
}

const importDescriptorSize = 20

// maxImportModules bounds the descriptors that are followed. The largest real
// images import some hundreds of modules.
const maxImportModules = 4096

// readDescriptor reads one import descriptor; ok is false at the end of the table.
func (r *Rebuilder) readDescriptor(rva uint64) (d importDescriptor, ok bool) {
	if !r.img.present(rva, importDescriptorSize) {
		return d, false
	}
	le := binary.LittleEndian
	b := r.img.Mem[rva:]
	d = importDescriptor{
		names: uint64(le.Uint32(b)), bound: le.Uint32(b[4:]),
		module: uint64(le.Uint32(b[12:])), addrs: uint64(le.Uint32(b[16:])), position: rva,
	}
	// The loader stops at whichever of the two is zero.
	return d, d.module != 0 && d.addrs != 0
}

// restoreImports sets the import address tables back to what the file has in
// them: a copy of the import name table, except where the file was bound.
func (r *Rebuilder) restoreImports() {
	rva := uint64(r.hdr.Dirs[dirImport].RVA)
	if rva == 0 || r.hdr.NumDirs <= dirImport {
		return
	}
	f := &r.fid.Imports
	// No more thunks than fit into the image are followed, over all descriptors:
	// tables that overlap or run in circles cost no more than honest ones.
	budget := len(r.img.Mem) / r.hdr.ptrSize()
	for n := 0; ; n++ {
		if !r.img.present(rva, importDescriptorSize) {
			f.Invalid = f.Invalid || rva+importDescriptorSize > uint64(len(r.img.Mem))
			r.lostImports()
			return
		}
		d, ok := r.readDescriptor(rva)
		if !ok {
			return
		}
		if n == maxImportModules || budget <= 0 {
			f.Invalid = true
			return
		}
		f.Modules++
		budget -= 1 + r.restoreModule(d, budget)
		rva += importDescriptorSize
	}
}

// lostImports marks the import address table as unknown when the descriptors
// that would restore it are not present.
func (r *Rebuilder) lostImports() {
	r.fid.Imports.LostNames++
	d := r.hdr.Dirs[dirIAT]
	if r.hdr.NumDirs <= dirIAT || d.RVA == 0 {
		return
	}
	if off, ok := r.lay.offset(uint64(d.RVA), uint64(d.Size)); ok {
		r.unknown(off, off+uint64(d.Size), CauseImport)
	}
}

// restoreModule restores the slots of one descriptor and returns how many thunks it looked at.
func (r *Rebuilder) restoreModule(d importDescriptor, budget int) int {
	f := &r.fid.Imports
	ps := uint64(r.hdr.ptrSize())
	bound := d.bound != 0
	if bound && r.hdr.Dirs[dirBoundImport].RVA == 0 && d.bound == 0xffffffff {
		bound = false // says "see the bound import directory", and there is none
	}
	// A name table that cannot be one is ignored by the loader too.
	hasNames := d.names != 0 && d.names != d.addrs && d.names >= uint64(r.hdr.SizeOfHeaders)
	if !hasNames {
		return r.resolveModule(d, budget)
	}
	n, whole := r.thunkRun(d.names, budget)
	if bound {
		r.restoreBound(d, n)
		return n
	}
	size := uint64(n) * ps
	r.countLostNames(d, n)
	if size > 0 {
		if r.put(d.addrs, r.img.Mem[d.names:d.names+size]) {
			f.Restored += n
		} else {
			f.Invalid = true
		}
	}
	if !whole {
		r.fid.Imports.LostNames++
		// The rest of the name table is not present: the slots beyond hold addresses
		// up to a zero slot of the address table itself.
		m, _ := r.thunkRun(d.addrs+size, budget-n)
		r.unresolved(d.addrs+size, m, CauseImport)
		return n + m
	}
	return n
}

// countLostNames counts the names of a descriptor that are on missing pages.
func (r *Rebuilder) countLostNames(d importDescriptor, n int) {
	if r.fid.Bytes.Missing == 0 {
		return
	}
	ps := r.hdr.ptrSize()
	r.named(0, d.position, importDescriptorSize)
	r.named(1, d.names, uint64(n*ps))
	if name, ok := r.img.cString(d.module, 512); !ok {
		r.fid.Imports.LostNames++
	} else {
		r.named(2, d.module, uint64(len(name))+1)
	}
	for i := 0; i < n; i++ {
		at := d.names + uint64(i*ps)
		v := getUint(r.img.Mem[at : at+uint64(ps)])
		if v>>(8*ps-1) != 0 {
			continue
		}
		if name, ok := r.img.cString(v+2, 512); !ok {
			r.fid.Imports.LostNames++
		} else {
			r.named(2, v, uint64(len(name))+3)
		}
	}
}

// named extends one of the runs that hold import names: descriptors, tables of names,
// and the names themselves, which linkers put one behind the other.
func (r *Rebuilder) named(kind int, rva, n uint64) {
	g := &r.names[kind]
	if g.End == 0 {
		*g = Range{rva, rva + n}
	}
	g.Start, g.End = min(g.Start, rva), max(g.End, rva+n)
}

// thunkRun counts the thunks from rva up to the zero that ends them. whole is
// false when a missing page, the end of the image or the budget ended them.
func (r *Rebuilder) thunkRun(rva uint64, budget int) (n int, whole bool) {
	m, le := r.img.Mem, binary.LittleEndian
	ps := uint64(r.hdr.ptrSize())
	ready := uint64(0) // present up to here
	for ; n < budget; n++ {
		if rva+ps > ready {
			if !r.img.present(rva, ps) {
				return n, false
			}
			ready = (rva+ps-1)&^(PageSize-1) + PageSize
		}
		var v uint64
		if ps == 8 {
			v = le.Uint64(m[rva:])
		} else {
			v = uint64(le.Uint32(m[rva:]))
		}
		if v == 0 {
			return n, true
		}
		rva += ps
	}
	return n, false
}

func (r *Rebuilder) unresolved(rva uint64, n int, c Cause) {
	if n <= 0 {
		return
	}
	size := uint64(n * r.hdr.ptrSize())
	r.fid.Imports.Unresolved += n
	if off, ok := r.lay.offset(rva, size); ok {
		r.unknown(off, off+size, c)
	}
}

// restoreBound restores slots of a module the file was bound to when it was
// built: they held the addresses the exports had then, at the preferred base.
func (r *Rebuilder) restoreBound(d importDescriptor, n int) {
	f := &r.fid.Imports
	ps := r.hdr.ptrSize()
	for i := 0; i < n; i++ {
		rva := d.addrs + uint64(i*ps)
		if !r.img.present(rva, uint64(ps)) {
			continue
		}
		f.Bound++
		va := getUint(r.img.Mem[rva : rva+uint64(ps)])
		if r.opt.ResolveExport != nil {
			if s := r.opt.ResolveExport(va); len(s) > 0 && s[0].Preferred != 0 {
				var b [8]byte
				putUint(b[:ps], s[0].Preferred)
				if r.put(rva, b[:ps]) {
					continue
				}
			}
		}
		r.unresolved(rva, 1, CauseBound)
	}
}

// resolveModule restores the slots of a descriptor that has no name table, as
// Borland's linker and packers make them: each slot held the RVA of a hint and
// name, or an ordinal. What it is called is known from the module that exports
// the address; where its name stands is searched for.
func (r *Rebuilder) resolveModule(d importDescriptor, budget int) int {
	ps := r.hdr.ptrSize()
	n, whole := r.thunkRun(d.addrs, budget)
	if _, ok := r.img.cString(d.module, 512); !ok || !whole {
		r.fid.Imports.LostNames++
	}
	var next uint64 // where the name of the next slot is expected
	for i := 0; i < n; i++ {
		rva := d.addrs + uint64(i*ps)
		va := getUint(r.img.Mem[rva : rva+uint64(ps)])
		if r.unboundThunk(va) {
			continue // never bound
		}
		var syms []Symbol
		if r.opt.ResolveExport != nil {
			syms = r.opt.ResolveExport(va)
		}
		v, after, ok := r.thunkFor(syms, next)
		if !ok {
			r.unresolved(rva, 1, CauseImport)
			continue
		}
		var b [8]byte
		putUint(b[:ps], v)
		if r.put(rva, b[:ps]) {
			r.fid.Imports.Resolved++
			r.fid.Bytes.Reconstructed += uint64(ps)
			// The file may refer to another name, on a missing page.
			if off, ok := r.lay.offset(rva, uint64(ps)); ok && r.fid.Bytes.Missing > 0 {
				r.unknown(off, off+uint64(ps), CauseImport)
			}
		}
		if after != 0 {
			next = after
		}
	}
	return n
}

// unboundThunk reports whether v is what a file holds rather than an address: the
// RVA of a name inside the image.
func (r *Rebuilder) unboundThunk(v uint64) bool {
	if v >= uint64(len(r.img.Mem)) || v < uint64(r.hdr.SizeOfHeaders) {
		return false
	}
	name, ok := r.img.cString(v+2, 512)
	return ok && len(name) > 0
}

// thunkFor finds the thunk value for an export: the RVA of a hint/name entry of
// one of its names, preferably at next, or else its ordinal.
func (r *Rebuilder) thunkFor(syms []Symbol, next uint64) (v, after uint64, ok bool) {
	for _, s := range syms {
		if s.Name == "" || next == 0 {
			continue
		}
		// Entries stand one after the other, padded to even addresses by most linkers.
		for at := next; at < next+4; at++ {
			if name, ok := r.img.cString(at+2, 512); ok && string(name) == s.Name {
				return at, at + 2 + uint64(len(name)) + 1, true
			}
		}
	}
	for _, s := range syms {
		if s.Name == "" {
			continue
		}
		if at, ok := r.findName(s.Name); ok {
			return at, at + 2 + uint64(len(s.Name)) + 1, true
		}
	}
	for _, s := range syms {
		if s.Ordinal != 0 {
			return 1<<(8*r.hdr.ptrSize()-1) | uint64(s.Ordinal), 0, true
		}
	}
	return 0, 0, false
}

// findName searches the image for a hint/name entry of name: from the import
// directory on, then from the start. An entry whose hint is zero or small is
// preferred, but in files made by hand other things stand there. The search is
// bounded by a budget of bytes per rebuild.
func (r *Rebuilder) findName(name string) (uint64, bool) {
	if len(name) < 3 || len(name) > 512 {
		return 0, false
	}
	r.needle = append(append(r.needle[:0], name...), 0)
	m := r.img.Mem
	dir := int(min(uint64(r.hdr.Dirs[dirImport].RVA), uint64(len(m))))
	for _, strict := range []bool{true, false} {
		for _, part := range [][2]int{{dir, len(m)}, {0, dir}} {
			for from := part[0]; from < part[1] && r.searched < 16*len(m); {
				i := bytes.Index(m[from:part[1]], r.needle)
				if i < 0 {
					r.searched += part[1] - from
					break
				}
				r.searched += i + 1
				at := from + i
				if at >= 2 && (!strict || m[at-1] < 0x20) {
					return uint64(at - 2), true
				}
				from = at + 1
			}
		}
	}
	return 0, false
}

// cString returns the bytes of a zero-terminated string at rva, without the
// zero; ok is false if it is longer than max or leaves the present pages.
func (m *Image) cString(rva uint64, max int) ([]byte, bool) {
	if !m.present(rva, 1) {
		return nil, false
	}
	b := m.Mem[rva:]
	if len(b) > max+1 {
		b = b[:max+1]
	}
	n := bytes.IndexByte(b, 0)
	if n < 0 || !m.present(rva, uint64(n+1)) {
		return nil, false
	}
	return b[:n], true
}
