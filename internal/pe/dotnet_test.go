package pe_test

import (
	"encoding/binary"
	"math/rand"
	"testing"

	"vmav.dev/vmav/internal/pe"
	"vmav.dev/vmav/internal/pe/petest"
)

// dotNetFile makes a file as C# compilers do: an address table of one slot, the
// CLR header, code, the import table and the entry stub in one section.
func dotNetFile() []byte {
	const rva, imports = 0x2000, 0xc00
	le := binary.LittleEndian
	text := noise(11, 0xd00)
	clear(text[:0x50])
	le.PutUint32(text[8:], 72)
	le.PutUint32(text[8+16:], 1) // IL only
	t := text[imports:]
	clear(t)
	le.PutUint32(t, rva+imports+40)
	le.PutUint32(t[12:], rva+imports+0x3e)
	le.PutUint32(t[16:], rva)
	le.PutUint32(t[40:], rva+imports+0x30)
	copy(t[0x32:], "_CorExeMain")
	copy(t[0x3e:], "mscoree.dll")
	le.PutUint32(text, rva+imports+0x30)
	const stub = imports + 0x50
	text[stub], text[stub+1] = 0xff, 0x25
	le.PutUint32(text[stub+2:], 0x400000+rva)
	b := petest.Builder{Base: 0x400000, DLLFlags: 0x8540, Entry: rva + stub,
		Sections: []petest.Section{{Name: ".text", RVA: rva, Data: text, Flags: codeFlags},
			{Name: ".rsrc", RVA: 0x4000, Data: noise(12, 0x333), Flags: dataFlags}},
		Relocs: []petest.Reloc{{RVA: rva + stub + 2, Type: 3}},
		Dirs:   map[int][2]uint32{1: {rva + imports, 0x3e + 11}, 12: {rva, 8}, 14: {rva + 8, 72}, 2: {0x4000, 0x333}},
	}
	f := b.File()
	le.PutUint32(f[0x80+24+24:], 0x4000) // BaseOfData
	return f
}

// TestDotNet turns back the headers of a .NET program that runs as 64-bit.
func TestDotNet(t *testing.T) {
	for _, widen := range []bool{false, true} {
		l := &petest.Loader{Rand: rand.New(rand.NewSource(9)), Widen: widen}
		f := roundTrip(t, dotNetFile(), 0x12340000, l, pe.Options{PreferredBase: 0x400000})
		if !f.Fidelity.DotNet || f.Headers.PE64 {
			t.Errorf("widened %v: .NET %v, PE32+ %v", widen, f.Fidelity.DotNet, f.Headers.PE64)
		}
		if f.Fidelity.Exact() == widen {
			t.Errorf("widened %v: exact %v", widen, f.Fidelity.Exact())
		}
		if i := f.Fidelity.Imports; i.Restored != 1 {
			t.Errorf("widened %v: imports %+v", widen, i)
		}
	}
}
