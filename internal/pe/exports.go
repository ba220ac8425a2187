package pe

import (
	"encoding/binary"
	"slices"
	"strings"
)

// ExportIndex knows what lives at the exported addresses of a process's modules.
// Its Resolve serves as Options.ResolveExport. It is filled by Add and may be read
// concurrently afterwards.
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

// Add enters the exports of a mapped module known to its process as name, and
// returns how many there are. Pages that are not present and tables that make no
// sense cost the exports in them. img is not kept.
func (x *ExportIndex) Add(img *Image, name string) int {
	if len(img.Mem)%PageSize != 0 || len(img.Pages) != len(img.Mem)/PageSize || !img.present(0, PageSize) {
		return 0
	}
	n := 0
	for n < len(img.Pages) && n < 64 && img.Pages[n] != Absent {
		n++
	}
	h, err := ParseHeaders(img.Mem[:n*PageSize])
	if err != nil {
		return 0
	}
	d := h.Dirs[dirExport]
	if h.NumDirs <= dirExport || d.RVA == 0 || !img.present(uint64(d.RVA), 40) {
		return 0
	}
	name = strings.ToLower(name)
	le := binary.LittleEndian
	e := img.Mem[d.RVA:]
	base := le.Uint32(e[16:])
	count, names := min(le.Uint32(e[20:]), maxExports), min(le.Uint32(e[24:]), maxExports)
	addrs, nameAt, ordAt := uint64(le.Uint32(e[28:])), uint64(le.Uint32(e[32:])), uint64(le.Uint32(e[36:]))
	added := 0
	named := make([]bool, count)
	enter := func(i uint32, sym string) {
		at := addrs + 4*uint64(i)
		if i >= count || !img.present(at, 4) || x.maxTotal <= 0 {
			return
		}
		rva := le.Uint32(img.Mem[at:])
		s := Symbol{Module: name, Name: sym, Ordinal: uint16(base + i)}
		if rva == 0 {
			return
		}
		x.maxTotal--
		added++
		if rva >= d.RVA && rva-d.RVA < d.Size {
			if target, ok := img.cString(uint64(rva), 512); ok {
				key := strings.ToLower(string(target))
				x.forwarded[key] = append(x.forwarded[key], s)
			}
			return
		}
		va := img.Base + uint64(rva)
		x.byAddr[va] = append(x.byAddr[va], s)
	}
	for i := uint32(0); i < names; i++ {
		n, o := nameAt+4*uint64(i), ordAt+2*uint64(i)
		if !img.present(n, 4) || !img.present(o, 2) {
			continue
		}
		sym, ok := img.cString(uint64(le.Uint32(img.Mem[n:])), 512)
		if !ok {
			continue
		}
		index := uint32(le.Uint16(img.Mem[o:]))
		if index < count {
			named[index] = true
		}
		enter(index, string(sym))
	}
	for i, ok := range named {
		if !ok {
			enter(uint32(i), "")
		}
	}
	return added
}

// ModuleName is the name that a mapped image's export directory gives it; "" where it
// has none.
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

// Resolve returns all that an address is exported as, forwarders to it included.
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
