package pe_test

import (
	"encoding/binary"
	"fmt"
	"math/rand"
	"testing"

	"vmav.dev/vmav/internal/pe"
	"vmav.dev/vmav/internal/pe/petest"
)

const (
	codeFlags = 0x60000020
	dataFlags = 0x40000040
)

// noise fills a section with bytes that repeat for a seed.
func noise(seed int64, n int) []byte {
	b := make([]byte, n)
	rand.New(rand.NewSource(seed)).Read(b)
	return b
}

// roundTrip maps a built file at base, rebuilds it and demands the same bytes.
func roundTrip(t *testing.T, file []byte, base uint64, l *petest.Loader, opt pe.Options) *pe.File {
	t.Helper()
	if l == nil {
		l = &petest.Loader{Rand: rand.New(rand.NewSource(9))}
	}
	m, err := l.Map(file, base)
	if err != nil {
		t.Fatal(err)
	}
	f, err := pe.Rebuild(imageOf(t.Name(), m), opt)
	if err != nil {
		t.Fatal(err)
	}
	if off, n := firstDifference(f.Data, file); n != 0 {
		t.Errorf("%d bytes differ, the first at %#x: got % x, want % x; base %+v", n, off, f.Data[off:min(off+8, len(f.Data))], file[off:min(off+8, len(file))],
			f.Fidelity.Base)
	}
	return f
}

// TestRelocationTypes undoes every type of relocation for x86 and x64, also over
// page ends and at bases that are on a page only, as those of drivers are.
func TestRelocationTypes(t *testing.T) {
	for _, is64 := range []bool{false, true} {
		for _, base := range []uint64{0x10000, 0x5670000, 0x5671000, 0x7fff3000} {
			t.Run(fmt.Sprintf("%v/%#x", is64, base), func(t *testing.T) {
				b := petest.Builder{Is64: is64, Base: 0x400000, Flags: 0x2000, DLLFlags: 0x40, Subsystem: 2,
					Sections: []petest.Section{{Name: ".text", RVA: 0x1000, Data: noise(1, 0x3000), Flags: codeFlags},
						{Name: ".rdata", RVA: 0x4000, Data: noise(2, 0x234), Flags: dataFlags}}}
				add := func(rva uint32, typ, param uint16) {
					b.Relocs = append(b.Relocs, petest.Reloc{RVA: rva, Type: typ, Param: param})
				}
				for i := uint32(0); i < 8; i++ {
					add(0x1100+32*i, 3, 0)
					add(0x1104+32*i, 1, 0)
					add(0x1108+32*i, 2, 0)
					add(0x110c+32*i, 4, uint16(0x1fff*i))
					add(0x1111+32*i, 10, 0) // odd
					add(0x1119+32*i, 0, 0)
				}
				add(0x1ffe, 3, 0)  // over a page end
				add(0x2ffb, 10, 0) // and an odd one
				add(0x2fff, 4, 0x8000)
				add(0x3ffc, 10, 0) // over the end of the section
				add(0x4100, 10, 0)
				f := roundTrip(t, b.File(), base, nil, pe.Options{PreferredBase: 0x400000})
				if r := f.Fidelity.Relocations; r.Undone != 8*5+5 || r.Invalid+r.Unsupported+r.Guessed != 0 {
					t.Errorf("relocations %+v", r)
				}
			})
		}
	}
}

// TestChecksumProvesBase finds the preferred base with nothing but the checksum.
func TestChecksumProvesBase(t *testing.T) {
	for _, c := range []struct {
		is64 bool
		base uint64
		at   uint64
	}{{false, 0x400000, 0x1230000}, {false, 0x1000000, 0xa50000}, {true, 0x140000000, 0x7ff612340000}, {true, 0x1c0000000, 0xfffff80123456000},
		{true, 0x10000000, 0x7ffe00000000}} {
		t.Run(fmt.Sprintf("%#x", c.base), func(t *testing.T) {
			b := petest.Builder{Is64: c.is64, Base: c.base, DLLFlags: 0x40, CheckSum: true,
				Sections: []petest.Section{{Name: ".text", RVA: 0x1000, Data: noise(3, 0x1801), Flags: codeFlags}}}
			typ := uint16(3)
			if c.is64 {
				typ = 10
			}
			for i := uint32(0); i < 37; i++ {
				at := 0x10 + 41*i
				binary.LittleEndian.PutUint64(b.Sections[0].Data[at:], c.base+uint64(at))
				b.Relocs = append(b.Relocs, petest.Reloc{RVA: 0x1000 + at, Type: typ})
			}
			f := roundTrip(t, b.File(), c.at, nil, pe.Options{})
			if got := f.Fidelity.Base; got.Method != pe.BaseChecksum || !got.Proven || got.Preferred != c.base {
				t.Errorf("base %+v", got)
			}
			if !f.Fidelity.CheckSum.Matches || !f.Fidelity.Exact() || f.Fidelity.Supports(pe.SigFileHash) != pe.SupportYes {
				t.Errorf("checksum %+v", f.Fidelity.CheckSum)
			}
			// The same with a byte changed proves nothing.
			l := &petest.Loader{Rand: rand.New(rand.NewSource(9))}
			m, err := l.Map(b.File(), c.at)
			if err != nil {
				t.Fatal(err)
			}
			m.Mem[0x2000]++
			if f, err = pe.Rebuild(imageOf("patched", m), pe.Options{}); err != nil || f.Fidelity.CheckSum.Matches || f.Fidelity.Base.Proven {
				t.Errorf("%v: a changed image is proven: %+v", err, f.Fidelity.Base)
			}
		})
	}
}

// importSection makes an import directory at rva for kernel32.dll. With names it
// has a name table, with bound the address table holds bound addresses.
func importSection(rva uint32, names, bound bool, symbols ...string) []byte {
	le := binary.LittleEndian
	b := make([]byte, 0x400)
	put := func(at int, v uint32) { le.PutUint32(b[at:], v) }
	const table, addrs, strings = 40, 200, 360
	if names {
		put(0, rva+table)
	}
	if bound {
		put(4, 0x12345678)
	}
	put(12, rva+0x3f0)
	copy(b[0x3f0:], "kernel32.dll")
	put(16, rva+addrs)
	at := strings
	for i, s := range symbols {
		put(table+4*i, rva+uint32(at))
		put(addrs+4*i, rva+uint32(at))
		if bound {
			put(addrs+4*i, 0x7c800000+uint32(i)*0x111)
		}
		if !names {
			put(table+4*i, 0)
		}
		copy(b[at+2:], s)
		at += (2 + len(s) + 2) &^ 1
	}
	return b
}

var importNames = []string{"ExitProcess", "LoadLibraryA", "GetProcAddress", "VirtualProtect"}

// TestImportsWithoutNames restores address tables of files that have no name table.
func TestImportsWithoutNames(t *testing.T) {
	b := petest.Builder{Base: 0x400000, DLLFlags: 0x40, Dirs: map[int][2]uint32{1: {0x2000, 40}},
		Sections: []petest.Section{{Name: ".text", RVA: 0x1000, Data: noise(4, 0x400), Flags: codeFlags},
			{Name: ".idata", RVA: 0x2000, Data: importSection(0x2000, false, false, importNames...), Flags: dataFlags}}}
	l := &petest.Loader{Rand: rand.New(rand.NewSource(9))}
	f := roundTrip(t, b.File(), 0x400000, l, pe.Options{PreferredBase: 0x400000, ResolveExport: resolver(l)})
	if i := f.Fidelity.Imports; i.Resolved != 4 || i.Unresolved != 0 {
		t.Errorf("imports %+v", i)
	}
	m, err := l.Map(b.File(), 0x400000)
	if err != nil {
		t.Fatal(err)
	}
	if f, err = pe.Rebuild(imageOf("unresolved", m), pe.Options{PreferredBase: 0x400000}); err != nil {
		t.Fatal(err)
	}
	if i := f.Fidelity.Imports; i.Unresolved != 4 || f.Fidelity.Bytes.Unknown != 16 || f.Fidelity.Exact() ||
		f.Fidelity.Supports(pe.SigImportHash) != pe.SupportNo {
		t.Errorf("without a resolver: imports %+v, %d bytes unknown", i, f.Fidelity.Bytes.Unknown)
	}
}

// TestBoundImports restores addresses a file was bound to when it was built.
func TestBoundImports(t *testing.T) {
	b := petest.Builder{Base: 0x400000, DLLFlags: 0x40, Dirs: map[int][2]uint32{1: {0x2000, 40}},
		Sections: []petest.Section{{Name: ".text", RVA: 0x1000, Data: noise(5, 0x400), Flags: codeFlags},
			{Name: ".idata", RVA: 0x2000, Data: importSection(0x2000, true, true, importNames...), Flags: dataFlags}}}
	l := &petest.Loader{Rand: rand.New(rand.NewSource(9))}
	bound := map[string]uint64{}
	for i, n := range importNames {
		bound[n] = 0x7c800000 + uint64(i)*0x111
	}
	f := roundTrip(t, b.File(), 0x400000, l, pe.Options{PreferredBase: 0x400000, ResolveExport: func(va uint64) []pe.Symbol {
		e, _ := l.Lookup(va)
		return []pe.Symbol{{Module: e.Module, Name: e.Name, Preferred: bound[e.Name]}}
	}})
	if i := f.Fidelity.Imports; i.Bound != 4 || i.Unresolved != 0 {
		t.Errorf("imports %+v", i)
	}
	m, err := l.Map(b.File(), 0x400000)
	if err != nil {
		t.Fatal(err)
	}
	if f, err = pe.Rebuild(imageOf("bound", m), pe.Options{PreferredBase: 0x400000}); err != nil {
		t.Fatal(err)
	}
	if i := f.Fidelity.Imports; i.Bound != 4 || i.Unresolved != 4 || f.Fidelity.Bytes.Unknown != 16 {
		t.Errorf("without a resolver: imports %+v, %d bytes unknown", i, f.Fidelity.Bytes.Unknown)
	}
}

// TestLowAlignment rebuilds a file that is mapped flat; its overlay is mapped too.
func TestLowAlignment(t *testing.T) {
	b := petest.Builder{Base: 0x10000, Align: 0x80, DLLFlags: 0x40, Flags: 0x2000, Overlay: []byte("mapped by chance"),
		Sections: []petest.Section{{Name: ".text", RVA: 0x280, Data: noise(6, 0x700), Flags: codeFlags},
			{Name: ".data", RVA: 0x980, Data: noise(7, 0x80), Flags: dataFlags}}}
	b.Relocs = []petest.Reloc{{RVA: 0x300, Type: 3}, {RVA: 0x990, Type: 3}}
	file := b.File()
	f := roundTrip(t, file, 0x3450000, nil, pe.Options{PreferredBase: 0x10000})
	if len(f.Data) != len(file) {
		t.Errorf("%d bytes, want %d with the overlay", len(f.Data), len(file))
	}
}
