package pe_test

import (
	"bytes"
	"encoding/binary"
	"math/rand"
	"testing"

	"vmav.dev/vmav/internal/pe"
	"vmav.dev/vmav/internal/pe/petest"
)

// dynFile makes a driver with code at 0x1000 and a dynamic value relocation table.
func dynFile(text []byte, table dynTable, slot uint64) []byte {
	rdata := make([]byte, 0x600)
	table.place(rdata)
	binary.LittleEndian.PutUint64(rdata[0x78:], slot) // GuardCFDispatchFunctionPointer
	b := petest.Builder{Is64: true, Base: 0x1c0000000, DLLFlags: 0x40, Subsystem: 1,
		Sections: []petest.Section{{Name: ".text", RVA: 0x1000, Data: text, Flags: codeFlags}, {Name: ".rdata", RVA: 0x2000, Data: rdata, Flags: dataFlags}},
		Relocs:   []petest.Reloc{{RVA: 0x1f00, Type: 10}, {RVA: 0x2078, Type: 10}},
		Dirs:     map[int][2]uint32{10: {0x2000, 0x140}}}
	return b.File()
}

// mapDriver maps a file where drivers are.
func mapDriver(t *testing.T, file []byte) *petest.Mapped {
	t.Helper()
	l := &petest.Loader{Rand: rand.New(rand.NewSource(9))}
	m, err := l.Map(file, 0xfffff80412345000)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// undone rebuilds an image to which a kernel has applied its table and demands its file.
func undone(t *testing.T, file []byte, m *petest.Mapped, count int) *pe.File {
	t.Helper()
	f, err := pe.Rebuild(imageOf(t.Name(), m), pe.Options{PreferredBase: 0x1c0000000})
	if err != nil {
		t.Fatal(err)
	}
	if off, n := firstDifference(f.Data, file); n != 0 {
		t.Errorf("%d bytes differ, the first at %#x: % x, want % x", n, off, f.Data[off:off+8], file[off:off+8])
	}
	if got := f.Fidelity.Relocations.Dynamic; got != count || count > 0 && f.Fidelity.Exact() {
		t.Errorf("%d undone, want %d; exact %v", got, count, f.Fidelity.Exact())
	}
	return f
}

// TestRetpolines turns indirect calls and jumps of every form into retpolines, as a kernel
// does where the processor needs them, and back.
func TestRetpolines(t *testing.T) {
	const base, slot = 0x1c0000000, 0x2300
	le := binary.LittleEndian
	forms := []struct {
		rva     uint32
		entry   uint16 // without the page offset
		code    []byte
		checked bool
	}{
		{0x1100, 1 << 12, []byte{0xff, 0xd0, 0x0f, 0x1f, 0x00}, false},
		{0x1120, 1<<12 | 1<<13, []byte{0x48, 0xff, 0xd0, 0x0f, 0x1f, 0x00}, false},
		{0x1140, 1 << 13, []byte{0x48, 0xff, 0xe0, 0xcc, 0xcc}, false},
		{0x1160, 1<<12 | 1<<14, []byte{0xff, 0x15, 0, 0, 0, 0}, true},
		{0x1180, 1<<13 | 1<<14, []byte{0x48, 0xff, 0x25, 0, 0, 0, 0}, true},
	}
	switches := []struct {
		rva  uint32
		reg  uint16
		code []byte
	}{
		{0x1200, 0, []byte{0xff, 0xe0, 0xcc, 0xcc, 0xcc}},
		{0x1220, 7, []byte{0xff, 0xe7, 0xcc, 0xcc, 0xcc}},
		{0x1240, 9, []byte{0x41, 0xff, 0xe1, 0xcc, 0xcc}},
	}
	text := noise(31, 0x1000)
	var indirect, branch []byte
	for _, f := range forms {
		if f.checked {
			le.PutUint32(f.code[len(f.code)-4:], slot-(f.rva+uint32(len(f.code))))
		}
		copy(text[f.rva-0x1000:], f.code)
		indirect = le.AppendUint16(indirect, uint16(f.rva&0xfff)|f.entry)
	}
	for _, s := range switches {
		copy(text[s.rva-0x1000:], s.code)
		branch = le.AppendUint16(branch, uint16(s.rva&0xfff)|s.reg<<12)
	}
	var table dynTable
	table.add(4, indirect)
	table.add(5, branch)
	file := dynFile(text, table, base+slot)
	m := mapDriver(t, file)
	undone(t, file, m, 0) // not applied: nothing is touched
	near := func(rva uint32, op byte, n int) {
		b := bytes.Repeat([]byte{0x90}, n)
		b[0] = op
		le.PutUint32(b[1:], 0x1800-(rva+5))
		copy(m.Mem[rva:], b)
	}
	for _, f := range forms {
		op := byte(0xe9)
		if f.entry>>12&1 != 0 {
			op = 0xe8
		}
		near(f.rva, op, len(f.code))
	}
	for _, s := range switches {
		near(s.rva, 0xe9, 5)
	}
	undone(t, file, m, len(forms)+len(switches))
}

// overrideFile makes a driver with calls of a function that has two variants.
func overrideFile() (file []byte, sites []uint32) {
	le := binary.LittleEndian
	text := noise(32, 0x1000)
	sites = []uint32{0x1101, 0x1201, 0x1301}
	for _, s := range sites {
		le.PutUint32(text[s-0x1000:], 0x1400-(s+4))
	}
	var body []byte
	for _, v := range []uint32{0x1400, 0, 8, 8 + 8, 0x1500, 0x1600, 0x1000, 8 + 8} { // two variants, one block
		body = le.AppendUint32(body, v)
	}
	for _, s := range sites {
		body = le.AppendUint16(body, uint16(s&0xfff)|1<<12)
	}
	body = le.AppendUint16(body, 0)
	var table dynTable
	table.addRaw(7, append(le.AppendUint32(nil, uint32(len(body))), body...))
	return dynFile(text, table, 0), sites
}

// TestFunctionOverrides has calls lead to a variant for the processor, and back.
func TestFunctionOverrides(t *testing.T) {
	le := binary.LittleEndian
	file, sites := overrideFile()
	m := mapDriver(t, file)
	undone(t, file, m, 0)
	le.PutUint32(m.Mem[sites[0]:], 0x1500-(sites[0]+4))
	le.PutUint32(m.Mem[sites[1]:], 0x1600-(sites[1]+4))
	undone(t, file, m, 2)
	// One that leads elsewhere is a hook, and stays.
	le.PutUint32(m.Mem[sites[2]:], 0x1700-(sites[2]+4))
	f, err := pe.Rebuild(imageOf("hooked", m), pe.Options{PreferredBase: 0x1c0000000})
	if err != nil {
		t.Fatal(err)
	}
	if _, n := firstDifference(f.Data, file); n == 0 {
		t.Error("a hook was undone")
	}
}

const arm64xMachine = 0x84 // e_lfanew of Builder, and 4

// arm64xFile makes a DLL that is ARM64 and x64.
func arm64xFile() []byte {
	le := binary.LittleEndian
	text := noise(33, 0x1000)
	rdata := make([]byte, 0x600)
	var table dynTable
	machine := uint16(arm64xMachine)
	le.PutUint32(text[0x100:], 0x1234)
	le.PutUint32(text[0x180:], 0x8000)
	page0 := le.AppendUint16(nil, machine|1<<12|1<<14)
	page0 = le.AppendUint16(page0, 0x8664)
	page1 := le.AppendUint16(nil, 0x100|2<<12|2<<14) // add 8 times
	page1 = le.AppendUint16(page1, 5)
	page1 = le.AppendUint16(page1, 0x180|2<<12|1<<14) // subtract 4 times
	page1 = le.AppendUint16(page1, 3)
	page1 = le.AppendUint16(page1, 0x200|1<<12|2<<14) // four bytes of its own
	page1 = le.AppendUint32(page1, 0xdeadbeef)
	page1 = le.AppendUint16(page1, 0x300|0<<12|3<<14) // eight zeros
	blocks := le.AppendUint32(le.AppendUint32(nil, 0), uint32(8+len(page0)))
	blocks = append(blocks, page0...)
	blocks = le.AppendUint32(le.AppendUint32(blocks, 0x1000), uint32(8+len(page1)))
	blocks = append(blocks, page1...)
	table.addRaw(6, blocks)
	table.place(rdata)
	b := petest.Builder{Is64: true, Base: 0x180000000, DLLFlags: 0x40, Flags: 0x2000,
		Sections: []petest.Section{{Name: ".text", RVA: 0x1000, Data: text, Flags: codeFlags}, {Name: ".rdata", RVA: 0x2000, Data: rdata, Flags: dataFlags}},
		Relocs:   []petest.Reloc{{RVA: 0x1f00, Type: 10}}, Dirs: map[int][2]uint32{10: {0x2000, 0x140}}}
	file := b.File()
	le.PutUint16(file[machine:], 0xaa64)
	return file
}

// TestARM64X applies an ARM64X table as a memory manager does for an x64 process: sums
// and the machine are undone, the rest is known to be lost.
func TestARM64X(t *testing.T) {
	le := binary.LittleEndian
	file, machine := arm64xFile(), arm64xMachine
	for _, apply := range []bool{false, true} {
		l := &petest.Loader{Rand: rand.New(rand.NewSource(9))}
		m, err := l.Map(file, 0x7ff812340000)
		if err != nil {
			t.Fatal(err)
		}
		if apply {
			le.PutUint16(m.Mem[machine:], 0x8664)
			le.PutUint32(m.Mem[0x1100:], 0x1234+5*8)
			le.PutUint32(m.Mem[0x1180:], 0x8000-3*4)
			le.PutUint32(m.Mem[0x1200:], 0xdeadbeef)
			clear(m.Mem[0x1300:0x1308])
		}
		f, err := pe.Rebuild(imageOf("arm64x.dll", m), pe.Options{PreferredBase: 0x180000000})
		if err != nil {
			t.Fatal(err)
		}
		want := 0
		if apply {
			want = 3
		}
		for o := range f.Data {
			lost := o >= 0x400 && o < 0x404 || o >= 0x500 && o < 0x508
			if f.Data[o] != file[o] && !(apply && lost) {
				t.Fatalf("applied %v: byte at %#x is %#02x, want %#02x", apply, o, f.Data[o], file[o])
			}
			if apply && lost && f.Fidelity.Known(uint64(o), 1) {
				t.Errorf("byte at %#x is lost and taken for known", o)
			}
		}
		if f.Fidelity.Relocations.Dynamic != want || apply && f.Fidelity.Exact() {
			t.Errorf("applied %v: %+v, exact %v", apply, f.Fidelity.Relocations, f.Fidelity.Exact())
		}
	}
}
