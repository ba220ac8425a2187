package pe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrExports reports an image whose export directory is missing or not present.
var ErrExports = errors.New("no export directory")

// ExportIndex maps addresses to the exports of a process's modules. Its Resolve serves as
// Options.ResolveExport. Add fills it; afterwards it may be read concurrently.
type ExportIndex struct {
	byAddr    map[uint64][]Symbol
	forwarded map[string][]Symbol // "module.name" in lower case: who exports it under another name
	maxTotal  int
}

// maxExports bounds the exports taken from one module; ordinals have 16 bits.
const maxExports = 1 << 16

// NewExportIndex returns an empty index.
func NewExportIndex() *ExportIndex {
	return &ExportIndex{byAddr: make(map[uint64][]Symbol), forwarded: make(map[string][]Symbol), maxTotal: 1 << 20}
}

// exportDir is the export directory of a mapped image (Microsoft, "PE Format", "The .edata
// Section"). Its tables and texts are not checked yet.
type exportDir struct {
	dir                   Directory
	name                  uint32 // RVA of the image's own name
	base, count, names    uint32
	addrs, nameAt, ordsAt uint64
}

// exports finds the export directory of img. ok is false if the headers or the directory
// are not present.
func (m *Image) exports() (d exportDir, ok bool) {
	if len(m.Mem)%PageSize != 0 || len(m.Pages) != len(m.Mem)/PageSize || !m.present(0, PageSize) {
		return d, false
	}
	n := 0
	for n < len(m.Pages) && n < 64 && m.Pages[n] != Absent {
		n++
	}
	h, err := ParseHeaders(m.Mem[:n*PageSize])
	if err != nil {
		return d, false
	}
	d.dir = h.Dirs[dirExport]
	if h.NumDirs <= dirExport || d.dir.RVA == 0 || !m.present(uint64(d.dir.RVA), 40) {
		return d, false
	}
	le := binary.LittleEndian
	e := m.Mem[d.dir.RVA:]
	d.name, d.base = le.Uint32(e[12:]), le.Uint32(e[16:])
	d.count, d.names = min(le.Uint32(e[20:]), maxExports), min(le.Uint32(e[24:]), maxExports)
	d.addrs, d.nameAt, d.ordsAt = uint64(le.Uint32(e[28:])), uint64(le.Uint32(e[32:])), uint64(le.Uint32(e[36:]))
	return d, true
}

// named calls f with each exported name and its index in the table of addresses, until f
// returns false. Names that are not present are skipped.
func (d *exportDir) named(m *Image, f func(name []byte, index uint32) bool) {
	le := binary.LittleEndian
	for i := uint32(0); i < d.names; i++ {
		n, o := d.nameAt+4*uint64(i), d.ordsAt+2*uint64(i)
		if !m.present(n, 4) || !m.present(o, 2) {
			continue
		}
		if sym, ok := m.cString(uint64(le.Uint32(m.Mem[n:])), 512); ok && !f(sym, uint32(le.Uint16(m.Mem[o:]))) {
			return
		}
	}
}

// rva returns the address at an index of the table. forwarded says that it is that of a
// text, which names an export of another module.
func (d *exportDir) rva(m *Image, index uint32) (rva uint32, forwarded, ok bool) {
	at := d.addrs + 4*uint64(index)
	if index >= d.count || !m.present(at, 4) {
		return 0, false, false
	}
	rva = binary.LittleEndian.Uint32(m.Mem[at:])
	return rva, rva >= d.dir.RVA && rva-d.dir.RVA < d.dir.Size, rva != 0
}

// FindExports looks up exports of a mapped image by name. It returns the name that the
// image gives itself, and the RVAs of those exports that are present and are no forwarders.
// It fails with ErrExports if the image exports nothing or its directory is not present.
func FindExports(img *Image, names ...string) (self string, rvas map[string]uint32, err error) {
	d, ok := img.exports()
	if !ok {
		return "", nil, fmt.Errorf("look for exports of %s: %w", img.Name, ErrExports)
	}
	text, ok := img.cString(uint64(d.name), 512)
	if !ok {
		return "", nil, fmt.Errorf("look for exports of %s: its own name: %w", img.Name, ErrExports)
	}
	rvas = make(map[string]uint32, len(names))
	d.named(img, func(name []byte, index uint32) bool {
		if !slices.Contains(names, string(name)) {
			return true
		}
		if rva, forwarded, ok := d.rva(img, index); ok && !forwarded && uint64(rva) < uint64(len(img.Mem)) {
			rvas[string(name)] = rva
		}
		return len(rvas) < len(names)
	})
	return string(text), rvas, nil
}

// Add adds the exports of a mapped module, which its process knows as name, and returns
// their number. Exports on absent pages or in inconsistent tables are left out. img is not
// kept.
func (x *ExportIndex) Add(img *Image, name string) int {
	d, ok := img.exports()
	if !ok {
		return 0
	}
	name = strings.ToLower(name)
	added := 0
	named := make([]bool, d.count)
	enter := func(i uint32, sym string) {
		if x.maxTotal <= 0 {
			return
		}
		rva, forwarded, ok := d.rva(img, i)
		if !ok {
			return
		}
		s := Symbol{Module: name, Name: sym, Ordinal: uint16(d.base + i)}
		x.maxTotal--
		added++
		if forwarded {
			if target, ok := img.cString(uint64(rva), 512); ok {
				key := strings.ToLower(string(target))
				x.forwarded[key] = append(x.forwarded[key], s)
			}
			return
		}
		va := img.Base + uint64(rva)
		x.byAddr[va] = append(x.byAddr[va], s)
	}
	d.named(img, func(sym []byte, index uint32) bool {
		if index < d.count {
			named[index] = true
		}
		enter(index, string(sym))
		return true
	})
	for i, ok := range named {
		if !ok {
			enter(uint32(i), "")
		}
	}
	return added
}

// ModuleName returns the name in a mapped image's export directory, or "" if there is none.
func ModuleName(img *Image) string {
	if len(img.Mem)%PageSize != 0 || len(img.Pages) != len(img.Mem)/PageSize {
		return ""
	}
	r := Rebuilder{img: img}
	h, err := ParseHeaders(r.memoryHeader())
	if err != nil || h.NumDirs <= dirExport {
		return ""
	}
	r.hdr = *h
	return r.exportName()
}

// Resolve returns all exported names of an address, including forwarders to it.
func (x *ExportIndex) Resolve(va uint64) []Symbol {
	direct := x.byAddr[va]
	if len(direct) == 0 || len(x.forwarded) == 0 {
		return direct
	}
	var out []Symbol
	for _, s := range direct {
		key := trimModule(s.Module) + "." + strings.ToLower(s.Name)
		if f := x.forwarded[key]; len(f) > 0 {
			if out == nil {
				out = slices.Clone(direct)
			}
			out = append(out, f...)
		}
	}
	if out == nil {
		return direct
	}
	return out
}
