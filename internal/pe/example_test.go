package pe_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"log"
	"math/rand"

	"vmav.dev/vmav/internal/pe"
	"vmav.dev/vmav/internal/pe/petest"
)

// A DLL is loaded at another address than the one it prefers, so that the loader changes
// its pointers. Rebuild undoes that, and its check sum proves the preferred address.
func ExampleRebuilder_Rebuild() {
	const preferred, loaded = 0x140000000, 0x7ff612340000
	code := make([]byte, 0x1000)
	binary.LittleEndian.PutUint64(code[0x10:], preferred+0x1000) // a pointer to itself
	dll := petest.Builder{Is64: true, Base: preferred, DLLFlags: 0x40, CheckSum: true,
		Sections: []petest.Section{{Name: ".text", RVA: 0x1000, Data: code, Flags: 0x60000020}},
		Relocs:   []petest.Reloc{{RVA: 0x1010, Type: 10}}}
	file := dll.File()
	loader := petest.Loader{Rand: rand.New(rand.NewSource(1))}
	mapped, err := loader.Map(file, loaded)
	if err != nil {
		log.Fatal(err)
	}

	pages := make([]pe.Origin, len(mapped.Mem)/pe.PageSize)
	for i := range pages {
		pages[i] = pe.Resident
	}
	var r pe.Rebuilder
	rebuilt, err := r.Rebuild(&pe.Image{Name: "example.dll", Base: mapped.Base, Mem: mapped.Mem, Pages: pages}, pe.Options{})
	if err != nil {
		log.Fatal(err)
	}
	f := rebuilt.Fidelity
	fmt.Printf("pointer in memory: %#x\n", binary.LittleEndian.Uint64(mapped.Mem[0x1010:]))
	fmt.Printf("preferred base: %#x, found by %s\n", f.Base.Preferred, f.Base.Method)
	fmt.Println("exact:", f.Exact(), "and equal:", bytes.Equal(rebuilt.Data, file))
	// Output:
	// pointer in memory: 0x7ff612341000
	// preferred base: 0x140000000, found by checksum
	// exact: true and equal: true
}

// A page that is nowhere in memory is a gap in the record, and zeros in the file.
func ExampleFidelity() {
	program := petest.Builder{Is64: true, Base: 0x140000000,
		Sections: []petest.Section{{Name: ".text", RVA: 0x1000, Data: bytes.Repeat([]byte{0xcc}, 0x3000), Flags: 0x60000020}}}
	loader := petest.Loader{Rand: rand.New(rand.NewSource(1))}
	mapped, err := loader.Map(program.File(), 0x140000000)
	if err != nil {
		log.Fatal(err)
	}
	pages := make([]pe.Origin, len(mapped.Mem)/pe.PageSize)
	for i := range pages {
		pages[i] = pe.Resident
	}
	pages[2] = pe.Absent

	var r pe.Rebuilder
	rebuilt, err := r.Rebuild(&pe.Image{Name: "example.exe", Base: mapped.Base, Mem: mapped.Mem, Pages: pages}, pe.Options{})
	if err != nil {
		log.Fatal(err)
	}
	f := rebuilt.Fidelity
	fmt.Printf("%.0f %% of the file is known\n", 100*f.Coverage())
	for _, g := range f.Gaps {
		fmt.Printf("file offset %#x, %d bytes: %s\n", g.Start, g.Len(), g.Cause)
	}
	// Output:
	// 68 % of the file is known
	// file offset 0x1200, 4096 bytes: page not present
}
