package pe_test

import (
	"encoding/binary"
	"errors"
	"math/rand"
	"os"
	"testing"

	"vmav.dev/vmav/internal/pe"
	"vmav.dev/vmav/internal/pe/petest"
)

// hostileBase is a small real DLL with relocations, imports and exports.
const hostileBase = "/usr/i686-w64-mingw32/lib/zlib1.dll"

func hostileImage(t testing.TB) (*pe.Image, []byte) {
	t.Helper()
	file, err := os.ReadFile(hostileBase)
	if err != nil {
		t.Fatalf("%v (Debian package libz-mingw-w64)", err)
	}
	l := &petest.Loader{Rand: rand.New(rand.NewSource(3))}
	m, err := l.Map(file, 0x5000000)
	if err != nil {
		t.Fatal(err)
	}
	return imageOf("hostile", m), file
}

// fields of the headers, for tests that lie in them
func ntAt(mem []byte) int                { return int(binary.LittleEndian.Uint32(mem[0x3c:])) }
func dirAt(mem []byte, i int) int        { return ntAt(mem) + 24 + 96 + 8*i }
func sectAt(mem []byte, i int) int       { return ntAt(mem) + 24 + 0xe0 + 40*i }
func put32(mem []byte, at int, v uint32) { binary.LittleEndian.PutUint32(mem[at:], v) }
func get32(mem []byte, at int) int       { return int(binary.LittleEndian.Uint32(mem[at:])) }

// TestHostile feeds images whose structures lie. What is demanded is an error or
// a file of bounded size with a record that does not call itself exact.
func TestHostile(t *testing.T) {
	for _, c := range []struct {
		name string
		lie  func(img *pe.Image)
		err  error // nil: a result is demanded
	}{
		{name: "raw size of 4 GiB", lie: func(m *pe.Image) { put32(m.Mem, sectAt(m.Mem, 0)+16, 0xfffffff0) }},
		{name: "raw offset at 4 GiB", lie: func(m *pe.Image) { put32(m.Mem, sectAt(m.Mem, 0)+20, 0xfffffe00) }, err: pe.ErrTooLarge},
		{name: "virtual address outside", lie: func(m *pe.Image) { put32(m.Mem, sectAt(m.Mem, 2)+12, 0xfffff000) }},
		{name: "virtual size of 4 GiB", lie: func(m *pe.Image) { put32(m.Mem, sectAt(m.Mem, 1)+8, 0xffffffff) }},
		{name: "e_lfanew outside", lie: func(m *pe.Image) { put32(m.Mem, 0x3c, 0xfffffff0) }},
		{name: "e_lfanew at the end", lie: func(m *pe.Image) { put32(m.Mem, 0x3c, uint32(len(m.Mem)-4)) }},
		{name: "section alignment 0", lie: func(m *pe.Image) { put32(m.Mem, ntAt(m.Mem)+24+32, 0) }},
		{name: "65535 sections", lie: func(m *pe.Image) { binary.LittleEndian.PutUint16(m.Mem[ntAt(m.Mem)+6:], 0xffff) }},
		{name: "sections all over each other", lie: overlapSections, err: pe.ErrTooLarge},
		{name: "optional header of 65535 bytes", lie: func(m *pe.Image) { binary.LittleEndian.PutUint16(m.Mem[ntAt(m.Mem)+20:], 0xffff) }, err: pe.ErrTooLarge},
		{name: "relocations point outside", lie: func(m *pe.Image) {
			at := get32(m.Mem, dirAt(m.Mem, 5))
			put32(m.Mem, at, uint32(len(m.Mem)-4096))
			for i := 8; i < 64; i += 2 {
				binary.LittleEndian.PutUint16(m.Mem[at+i:], 0x3fff)
			}
		}},
		{name: "relocation block of 4 GiB", lie: func(m *pe.Image) { put32(m.Mem, get32(m.Mem, dirAt(m.Mem, 5))+4, 0xfffffffc) }},
		{name: "relocation block of no size", lie: func(m *pe.Image) { put32(m.Mem, get32(m.Mem, dirAt(m.Mem, 5))+4, 0) }},
		{name: "relocation table is the whole image", lie: func(m *pe.Image) {
			put32(m.Mem, dirAt(m.Mem, 5), 0x1000)
			put32(m.Mem, dirAt(m.Mem, 5)+4, 0xffffffff)
		}},
		{name: "import directory at the end", lie: func(m *pe.Image) { put32(m.Mem, dirAt(m.Mem, 1), uint32(len(m.Mem)-10)) }},
		{name: "import tables that share one endless run", lie: endlessImports},
		{name: "import table in a circle", lie: circularImports},
		{name: "name table in the address table", lie: func(m *pe.Image) {
			at := get32(m.Mem, dirAt(m.Mem, 1))
			put32(m.Mem, at, uint32(get32(m.Mem, at+16)+4))
		}},
		{name: "delay imports everywhere", lie: func(m *pe.Image) {
			put32(m.Mem, dirAt(m.Mem, 13), 0x1000)
			put32(m.Mem, dirAt(m.Mem, 13)+4, 0xffffffff)
		}},
		{name: "load config at the end", lie: func(m *pe.Image) { put32(m.Mem, dirAt(m.Mem, 10), uint32(len(m.Mem)-4)) }},
		{name: "TLS at the end", lie: func(m *pe.Image) { put32(m.Mem, dirAt(m.Mem, 9), uint32(len(m.Mem)-8)) }},
		{name: "every directory at the start", lie: func(m *pe.Image) {
			for i := 0; i < 16; i++ {
				put32(m.Mem, dirAt(m.Mem, i), 4)
				put32(m.Mem, dirAt(m.Mem, i)+4, 0xffffffff)
			}
		}},
		{name: "all zeros", lie: func(m *pe.Image) { clear(m.Mem) }},
		{name: "all ones", lie: func(m *pe.Image) {
			for i := range m.Mem {
				m.Mem[i] = 0xff
			}
		}},
		{name: "nothing present", lie: func(m *pe.Image) { clear(m.Mem); clear(m.Pages) }},
		{name: "unaligned", lie: func(m *pe.Image) { m.Mem = m.Mem[:len(m.Mem)-1] }, err: pe.ErrHeaders},
		{name: "fewer pages than memory", lie: func(m *pe.Image) { m.Pages = m.Pages[1:] }, err: pe.ErrHeaders},
		{name: "empty", lie: func(m *pe.Image) { m.Mem, m.Pages = nil, nil }, err: pe.ErrHeaders},
	} {
		t.Run(c.name, func(t *testing.T) {
			img, file := hostileImage(t)
			c.lie(img)
			f, err := pe.Rebuild(img, pe.Options{})
			if c.err != nil {
				if !errors.Is(err, c.err) || f != nil {
					t.Fatalf("got %v, %v, want error %v and no result", f, err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatalf("got %v, want a record", err)
			}
			if limit := 2*len(img.Mem) + 16<<20; len(f.Data) > limit {
				t.Errorf("file of %d bytes, limit %d", len(f.Data), limit)
			}
			if _, n := firstDifference(f.Data, file); n != 0 && f.Fidelity.CheckSum.Matches {
				t.Errorf("%d bytes differ, but the checksum is said to match", n)
			}
			if len(f.Fidelity.Notes) > 32 || len(f.Fidelity.Conflicts) > 256 {
				t.Errorf("record of unbounded length: %d notes", len(f.Fidelity.Notes))
			}
		})
	}
}

// overlapSections makes as many sections as fit before the first one, all of the
// whole image.
func overlapSections(m *pe.Image) {
	size := len(m.Mem)
	n := (0x1000 - sectAt(m.Mem, 0)) / 40
	binary.LittleEndian.PutUint16(m.Mem[ntAt(m.Mem)+6:], uint16(n))
	for i := 0; i < n; i++ {
		at := sectAt(m.Mem, i)
		put32(m.Mem, at+8, uint32(size))
		put32(m.Mem, at+12, 0x1000)
		put32(m.Mem, at+16, uint32(size))
		put32(m.Mem, at+20, 0x400)
		put32(m.Mem, at+36, 0xe0000020)
	}
}

// endlessImports makes thousands of descriptors that share one table without end.
func endlessImports(m *pe.Image) {
	dir := get32(m.Mem, sectAt(m.Mem, 1)+12)
	put32(m.Mem, dirAt(m.Mem, 1), uint32(dir))
	for at := dir; at+20 <= len(m.Mem)-0x1000; at += 20 {
		put32(m.Mem, at, uint32(dir))
		put32(m.Mem, at+4, 0)
		put32(m.Mem, at+12, uint32(dir))
		put32(m.Mem, at+16, uint32(dir+4))
	}
}

// circularImports makes the import table its own name and address table.
func circularImports(m *pe.Image) {
	dir := get32(m.Mem, dirAt(m.Mem, 1))
	for i := 0; i < 3; i++ {
		put32(m.Mem, dir+20*i, uint32(dir))
		put32(m.Mem, dir+20*i+16, uint32(dir))
	}
}

// TestHostileWork holds the work on a large hostile image against that on an
// honest one of the same size, by what they allocate.
func TestHostileWork(t *testing.T) {
	img, _ := hostileImage(t)
	big := &pe.Image{Name: "big", Base: img.Base, Mem: make([]byte, 64<<20), Pages: make([]pe.Origin, 64<<20/pe.PageSize)}
	copy(big.Mem, img.Mem)
	for i := range big.Pages {
		big.Pages[i] = pe.Origin(i % 2) // every other page absent
	}
	big.Pages[0] = pe.Resident
	rnd := rand.New(rand.NewSource(4))
	for at := len(img.Mem); at < len(big.Mem); at += 4 {
		put32(big.Mem, at, uint32(img.Base)+uint32(rnd.Intn(len(big.Mem))))
	}
	put32(big.Mem, ntAt(big.Mem)+24+56, uint32(len(big.Mem)))
	put32(big.Mem, dirAt(big.Mem, 5), 0x1000)
	put32(big.Mem, dirAt(big.Mem, 5)+4, uint32(len(big.Mem)))
	put32(big.Mem, sectAt(big.Mem, 0)+8, uint32(len(big.Mem)))
	put32(big.Mem, sectAt(big.Mem, 0)+16, uint32(len(big.Mem)))
	f, err := pe.Rebuild(big, pe.Options{})
	if err != nil && !errors.Is(err, pe.ErrTooLarge) {
		t.Fatal(err)
	}
	if err == nil && f.Fidelity.Exact() {
		t.Error("half of the pages are missing and the record says exact")
	}
}
