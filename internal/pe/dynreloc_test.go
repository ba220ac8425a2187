package pe_test

import (
	"encoding/binary"
	"math/rand"
	"testing"

	"vmav.dev/vmav/internal/pe"
	"vmav.dev/vmav/internal/pe/petest"
)

// kernelFile makes a driver with a dynamic value relocation table: two transfers
// through its import table and two words in the page tables' default place.
func kernelFile() (file []byte, sites, words []uint32) {
	const pteBase = 0xFFFFF68000000000
	le := binary.LittleEndian
	text := noise(21, 0x1000)
	idata := make([]byte, 0x400)
	copy(idata, importSection64(0x3000, "ExAllocatePoolWithTag", "IoCreateDevice", "ZwClose"))
	sites = []uint32{0x1100, 0x1200}
	for i, s := range sites {
		b := []byte{0x48, 0xff, 0x15, 0, 0, 0, 0, 0x0f, 0x1f, 0x44, 0, 0}
		if i == 1 {
			b = []byte{0x48, 0xff, 0x25, 0, 0, 0, 0, 0xcc, 0xcc, 0xcc, 0xcc, 0xcc}
		}
		le.PutUint32(b[3:], 0x3000+200+8*uint32(i)-(s+7))
		copy(text[s-0x1000:], b)
	}
	words = []uint32{0x1300, 0x1408}
	for i, w := range words {
		le.PutUint64(text[w-0x1000:], pteBase+uint64(8*i))
	}
	rdata := make([]byte, 0x400)
	var table dynTable
	block := table.add
	block(3, le.AppendUint32(le.AppendUint32(nil, sites[0]&0xfff|1<<12|0<<13), sites[1]&0xfff|1<<13))
	block(pteBase, le.AppendUint16(le.AppendUint16(nil, uint16(words[0]&0xfff|10<<12)), uint16(words[1]&0xfff|10<<12)))
	table.place(rdata)
	b := petest.Builder{Is64: true, Base: 0x1c0000000, DLLFlags: 0x40, Subsystem: 1,
		Sections: []petest.Section{{Name: ".text", RVA: 0x1000, Data: text, Flags: codeFlags}, {Name: ".rdata", RVA: 0x2000, Data: rdata, Flags: dataFlags},
			{Name: ".idata", RVA: 0x3000, Data: idata, Flags: dataFlags}},
		Relocs: []petest.Reloc{{RVA: 0x1500, Type: 10}},
		Dirs:   map[int][2]uint32{1: {0x3000, 40}, 10: {0x2000, 0x140}, 12: {0x3000 + 200, 32}}}
	return b.File(), sites, words
}

// dynTable is a dynamic value relocation table.
type dynTable []byte

// add adds the relocations of a symbol, in one block for the page at 0x1000.
func (d *dynTable) add(symbol uint64, entries []byte) {
	le := binary.LittleEndian
	b := le.AppendUint32(le.AppendUint32(nil, 0x1000), uint32(8+len(entries)))
	d.addRaw(symbol, append(b, entries...))
}

// addRaw adds what is behind the header of a symbol.
func (d *dynTable) addRaw(symbol uint64, b []byte) {
	le := binary.LittleEndian
	*d = append(le.AppendUint32(le.AppendUint64(*d, symbol), uint32(len(b))), b...)
}

// place makes rdata, which is section 2, begin with a load configuration that leads to the
// table.
func (d dynTable) place(rdata []byte) {
	le := binary.LittleEndian
	le.PutUint32(rdata, 0x140)
	le.PutUint32(rdata[0xe0:], 0x200)
	le.PutUint16(rdata[0xe4:], 2)
	le.PutUint32(rdata[0x200:], 1) // version
	le.PutUint32(rdata[0x204:], uint32(len(d)))
	copy(rdata[0x208:], d)
}

// importSection64 is importSection for x64.
func importSection64(rva uint32, symbols ...string) []byte {
	le := binary.LittleEndian
	b := make([]byte, 0x400)
	const table, addrs, strings = 40, 200, 360
	le.PutUint32(b, rva+table)
	le.PutUint32(b[12:], rva+0x3f0)
	le.PutUint32(b[16:], rva+addrs)
	copy(b[0x3f0:], "ntoskrnl.exe")
	at := strings
	for i, s := range symbols {
		le.PutUint64(b[table+8*i:], uint64(rva)+uint64(at))
		le.PutUint64(b[addrs+8*i:], uint64(rva)+uint64(at))
		copy(b[at+2:], s)
		at += (2 + len(s) + 2) &^ 1
	}
	return b
}

// TestDynamicRelocations applies retpolines and moved page tables to a driver, as
// a kernel does, and undoes them.
func TestDynamicRelocations(t *testing.T) {
	le := binary.LittleEndian
	file, sites, words := kernelFile()
	for _, apply := range []bool{false, true} {
		l := &petest.Loader{Rand: rand.New(rand.NewSource(9))}
		m, err := l.Map(file, 0xfffff80412345000)
		if err != nil {
			t.Fatal(err)
		}
		want := 0
		if apply {
			want = len(sites) + len(words)
			for i, s := range sites {
				b := m.Mem[s : s+12]
				b[0], b[1], b[2], b[7] = 0x4c, 0x8b, 0x15, 0xe8+byte(i)
				le.PutUint32(b[8:], 0x12345)
			}
			for i, w := range words {
				le.PutUint64(m.Mem[w:], 0xffffde0000000000+uint64(8*i))
			}
		}
		f, err := pe.Rebuild(imageOf("driver", m), pe.Options{PreferredBase: 0x1c0000000})
		if err != nil {
			t.Fatal(err)
		}
		if off, n := firstDifference(f.Data, file); n != 0 {
			t.Errorf("applied %v: %d bytes differ, the first at %#x", apply, n, off)
		}
		if got := f.Fidelity.Relocations.Dynamic; got != want || f.Fidelity.Exact() == apply {
			t.Errorf("applied %v: %d undone, want %d; exact %v", apply, got, want, f.Fidelity.Exact())
		}
	}
}
