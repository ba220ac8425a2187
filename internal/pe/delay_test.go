package pe_test

import (
	"encoding/binary"
	"errors"
	"math/rand"
	"testing"

	"vmav.dev/vmav/internal/pe"
	"vmav.dev/vmav/internal/pe/petest"
)

// delayFile makes a file that imports four functions with delay: descriptor,
// names and, if unload is set, the copy of the table that unloading uses, in
// .rdata; slots and module handle in .data; stubs in .text.
func delayFile(is64, unload bool) []byte {
	le := binary.LittleEndian
	ps := uint32(4)
	base := uint64(0x400000)
	if is64 {
		ps, base = 8, 0x140000000
	}
	text, rdata, data := noise(41, 0x800), make([]byte, 0x400), make([]byte, 0x200)
	b := petest.Builder{Is64: is64, Base: base, DLLFlags: 0x40, Flags: 0x2000}
	put := func(s []byte, at uint32, v uint64) {
		if is64 {
			le.PutUint64(s[at:], v)
		} else {
			le.PutUint32(s[at:], uint32(v))
		}
	}
	reloc := func(rva uint32) {
		typ := uint16(3)
		if is64 {
			typ = 10
		}
		b.Relocs = append(b.Relocs, petest.Reloc{RVA: rva, Type: typ})
	}
	const names, strs, copyAt = 0x80, 0x100, 0x300
	for i, v := range []uint32{1, 0x2000 + 0x3f0, 0x3000, 0x3010, 0x2000 + names, 0, 0, 0} {
		le.PutUint32(rdata[4*i:], v)
	}
	if unload {
		le.PutUint32(rdata[24:], 0x2000+copyAt)
	}
	copy(rdata[0x3f0:], "version.dll")
	for i, n := range importNames {
		slot, stub := 0x3010+ps*uint32(i), 0x1100+0x20*uint32(i)
		at := strs + 0x20*uint32(i)
		copy(rdata[at+2:], n+"\x00")
		put(rdata, names+ps*uint32(i), uint64(0x2000+at))
		put(data, slot-0x3000, base+uint64(stub))
		reloc(slot)
		if unload {
			put(rdata, copyAt+ps*uint32(i), base+uint64(stub))
			reloc(0x2000 + copyAt + ps*uint32(i))
		}
		code := text[stub-0x1000:]
		if is64 {
			copy(code, []byte{0x48, 0x8d, 0x05})
			le.PutUint32(code[3:], slot-(stub+7))
			code[7] = 0xe9
		} else {
			code[0], code[5] = 0xb8, 0xe9
			le.PutUint32(code[1:], uint32(base)+slot)
			reloc(stub + 1)
		}
	}
	b.Sections = []petest.Section{{Name: ".text", RVA: 0x1000, Data: text, Flags: codeFlags}, {Name: ".rdata", RVA: 0x2000, Data: rdata, Flags: dataFlags},
		{Name: ".data", RVA: 0x3000, Data: data, Flags: 0xc0000040}}
	b.Dirs = map[int][2]uint32{13: {0x2000, 64}}
	return b.File()
}

// TestDelayImports resolves every other delayed import and demands the stubs
// back, from the unload table or from the code.
func TestDelayImports(t *testing.T) {
	for _, is64 := range []bool{false, true} {
		for _, unload := range []bool{false, true} {
			file := delayFile(is64, unload)
			h, err := pe.ParseHeaders(file)
			if err != nil {
				t.Fatal(err)
			}
			l := &petest.Loader{Rand: rand.New(rand.NewSource(9)), ResolveDelay: true}
			f := roundTrip(t, file, 0x12340000, l, pe.Options{PreferredBase: h.ImageBase})
			if i := f.Fidelity.Imports; i.Delay != 2 || i.Unresolved != 0 {
				t.Errorf("64-bit %v, unload %v: imports %+v", is64, unload, i)
			}
		}
	}
}

// TestExportIndex finds exports by address, also those that another module forwards to.
func TestExportIndex(t *testing.T) {
	x := pe.NewExportIndex()
	k32, _ := mapFile(t, wineDir+"kernel32.dll")
	kbase, file := mapFile(t, wineDir+"kernelbase.dll")
	kbase.Base = 0x7ff700000000
	if n := x.Add(k32, "KERNEL32.DLL"); n < 1000 {
		t.Errorf("%d exports of kernel32", n)
	}
	if n := x.Add(kbase, "kernelbase.dll"); n < 1000 {
		t.Errorf("%d exports of kernelbase", n)
	}
	h, err := pe.ParseHeaders(file)
	if err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	dir := h.Dirs[0].RVA
	names := le.Uint32(kbase.Mem[dir+32:])
	rva := func(i uint32) uint32 {
		ord := le.Uint16(kbase.Mem[le.Uint32(kbase.Mem[dir+36:])+2*i:])
		return le.Uint32(kbase.Mem[le.Uint32(kbase.Mem[dir+28:])+4*uint32(ord):])
	}
	checked, forwarded := 0, 0
	for i := uint32(0); i < 1000; i++ {
		at := le.Uint32(kbase.Mem[names+4*i:])
		end := at
		for kbase.Mem[end] != 0 {
			end++
		}
		if r := rva(i); r >= dir && r < dir+h.Dirs[0].Size {
			continue // a forwarder
		}
		found := false
		for _, s := range x.Resolve(kbase.Base + uint64(rva(i))) {
			if s.Module == "kernel32.dll" {
				forwarded++
			}
			found = found || s.Module == "kernelbase.dll" && s.Name == string(kbase.Mem[at:end])
		}
		if !found {
			t.Errorf("%s at %#x not found", kbase.Mem[at:end], rva(i))
		}
		checked++
	}
	if forwarded == 0 {
		t.Error("no export of kernel32 that is forwarded to kernelbase")
	}
	if checked < 100 || x.Resolve(1) != nil {
		t.Errorf("%d exports checked", checked)
	}
}

// TestFindExports finds exports by name: those of the image itself, and no forwarders.
func TestFindExports(t *testing.T) {
	ntdll, file := mapFile(t, wineDir+"ntdll.dll")
	self, rvas, err := pe.FindExports(ntdll, "NtClose", "NtOpenProcess", "NtNoSuchCall")
	if err != nil || self != "ntdll.dll" || len(rvas) != 2 {
		t.Fatalf("%q, %v, %v; want ntdll.dll with two exports", self, rvas, err)
	}
	x := pe.NewExportIndex()
	x.Add(ntdll, "ntdll.dll")
	for name, rva := range rvas {
		found := false
		for _, s := range x.Resolve(ntdll.Base + uint64(rva)) {
			found = found || s.Name == name
		}
		if !found {
			t.Errorf("%s is said to be at %#x, where %v is", name, rva, x.Resolve(ntdll.Base+uint64(rva)))
		}
	}
	k32, _ := mapFile(t, wineDir+"kernel32.dll")
	if _, rvas, err := pe.FindExports(k32, "HeapAlloc"); err != nil || len(rvas) != 0 {
		t.Errorf("a forwarder: %v, %v", rvas, err)
	}
	h, err := pe.ParseHeaders(file)
	if err != nil {
		t.Fatal(err)
	}
	ntdll.Pages[h.Dirs[0].RVA/pe.PageSize] = pe.Absent
	if self, rvas, err := pe.FindExports(ntdll, "NtClose"); !errors.Is(err, pe.ErrExports) {
		t.Errorf("without its directory: %q, %v, %v", self, rvas, err)
	}
}
