package pe

import (
	"bytes"
	"encoding/binary"
)

// A .NET program without native code is a PE32 file that runs as 64-bit where it
// can. For that the 64-bit loader rewrites its headers in memory to PE32+: the
// optional header grows by 16 bytes, the section table moves up by as many, and of
// the data directories only those that such a program needs survive. Only the
// machine in the file header stays what it was, and gives it away.

// clrILOnly is COMIMAGE_FLAGS_ILONLY of IMAGE_COR20_HEADER.Flags, at offset 16.
const clrILOnly = 1

// rewrittenDotNet reports whether the headers are those of a .NET program that the
// loader has rewritten.
func (r *Rebuilder) rewrittenDotNet() bool {
	h := &r.hdr
	d := h.Dirs[dirCLR]
	if !h.PE64 || h.Machine != machineI386 || h.SizeOfOptionalHeader != 0xf0 || d.RVA == 0 || !r.img.present(uint64(d.RVA), 72) {
		return false
	}
	return binary.LittleEndian.Uint32(r.img.Mem[d.RVA+16:])&clrILOnly != 0
}

// undoDotNet writes the headers back to PE32 and parses them anew.
func (r *Rebuilder) undoDotNet() error {
	le := binary.LittleEndian
	src := r.headerSource
	h := r.hdr
	opt := int(h.optOffset())
	table, size := int(h.sectTable), len(h.Sections)*sectionHeaderSize
	end := min(int(max(h.SizeOfHeaders, uint32(table+size))), len(src))
	r.headerCopy = append(r.headerCopy[:0], src[:end]...)
	c, o := r.headerCopy, src[opt:]
	le.PutUint16(c[h.ntOffset+4+16:], 0xe0)
	n := c[opt:]
	le.PutUint16(n, magicPE32)
	// BaseOfData has no place in PE32+: linkers put the first section after the code there.
	data := uint32(0)
	for i := 1; i < len(h.Sections) && data == 0; i++ {
		data = h.Sections[i].VirtualAddress
	}
	le.PutUint32(n[24:], data)
	r.doubt(opt+24, 4)
	le.PutUint32(n[28:], uint32(h.ImageBase))
	for i := 0; i < 4; i++ { // stack and heap, reserve and commit
		le.PutUint32(n[72+4*i:], uint32(le.Uint64(o[72+8*i:])))
	}
	copy(n[88:], o[104:112+8*numDirs])
	copy(c[table-16:], src[table:table+size])
	clear(c[table-16+size : table+size])
	if h.Dirs[dirImport].RVA == 0 {
		r.findDotNetImports(c, opt)
	}
	r.fid.Notes = append(r.fid.Notes, "headers of a .NET program turned back from PE32+ to PE32")
	return r.hdr.parse(c)
}

// doubt marks bytes of the made-up header as not known.
func (r *Rebuilder) doubt(at, n int) {
	r.unknownHeader = append(r.unknownHeader, Range{uint64(at), uint64(at + n)})
	r.fid.Bytes.Reconstructed += uint64(n)
}

// findDotNetImports puts the import and address table directories back, which
// the loader dropped. Such a program imports one function from mscoree.dll; the
// descriptor is the one that points at that name.
func (r *Rebuilder) findDotNetImports(c []byte, opt int) {
	le := binary.LittleEndian
	m := r.img.Mem
	name := bytes.Index(m, []byte("mscoree.dll\x00"))
	if name < 0 {
		return
	}
	want := le.AppendUint32(nil, uint32(name))
	// The table stands right before the name it points at.
	from := max(name-256, 16)
	at := bytes.Index(m[from:name], want)
	if at < 0 {
		return
	}
	d := from + at - 12
	if d < 0 || !r.img.present(uint64(d), 2*importDescriptorSize) {
		return
	}
	addrs := le.Uint32(m[d+16:])
	if uint64(addrs)+8 > uint64(len(m)) {
		return
	}
	dir := func(i int, rva, size uint32) {
		le.PutUint32(c[opt+96+8*i:], rva)
		le.PutUint32(c[opt+96+8*i+4:], size)
		r.doubt(opt+96+8*i, 8)
	}
	// The size linkers state covers everything up to the end of the name, less one.
	dir(dirImport, uint32(d), uint32(name+len("mscoree.dll")-d))
	dir(dirIAT, addrs, 8)
}
