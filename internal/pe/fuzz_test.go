package pe_test

import (
	"bytes"
	"math/rand"
	"os"
	"testing"

	"vmav.dev/vmav/internal/pe"
	"vmav.dev/vmav/internal/pe/petest"
)

// fuzzSeeds are small files: packed ones made by hand, with headers that bend
// the rules, and one that follows them.
func fuzzSeeds(f *testing.F) [][]byte {
	var seeds [][]byte
	for _, name := range []string{"clam.exe", "clam-upack.exe", "clam-upx.exe", "clam-mew.exe", "clam-fsg.exe", "clam-petite.exe"} {
		b, err := os.ReadFile("/usr/share/clamav-testfiles/" + name)
		if err != nil {
			f.Fatalf("%v (Debian package clamav-testfiles)", err)
		}
		seeds = append(seeds, b)
	}
	return seeds
}

// fuzzImage makes an image of any bytes: padded to pages, with origins from mask.
func fuzzImage(mem []byte, base uint64, mask uint64) *pe.Image {
	const most = 64 << 10
	if len(mem) > most {
		mem = mem[:most]
	}
	n := (len(mem) + pe.PageSize - 1) / pe.PageSize
	img := &pe.Image{Name: "fuzz", Base: base &^ 0xfff, Mem: make([]byte, n*pe.PageSize), Pages: make([]pe.Origin, n)}
	copy(img.Mem, mem)
	for i := range img.Pages {
		img.Pages[i] = pe.Origin(mask >> (4 * (i % 16)) & 7)
		if img.Pages[i] == pe.Absent {
			clear(img.Mem[i*pe.PageSize : (i+1)*pe.PageSize])
		}
	}
	return img
}

func addMapped(f *testing.F, add func(mem []byte, base uint64)) {
	l := &petest.Loader{Rand: rand.New(rand.NewSource(5))}
	kernel, _, _ := kernelFile()
	for _, s := range append(fuzzSeeds(f), kernel, dotNetFile()) {
		if m, err := l.Map(s, 0x5000000); err == nil {
			add(m.Mem, m.Base)
		}
		add(s, 0x400000)
	}
}

// FuzzRebuild: no panic, no result with an error, bounded size, counts that add up.
func FuzzRebuild(f *testing.F) {
	addMapped(f, func(mem []byte, base uint64) {
		f.Add(mem, base, uint64(0x1111111111111111), uint64(0))
		f.Add(mem, base, uint64(0x1010201050103011), uint64(0x10000000))
	})
	f.Fuzz(func(t *testing.T, mem []byte, base, mask, preferred uint64) {
		img := fuzzImage(mem, base, mask)
		before := bytes.Clone(img.Mem)
		file, err := pe.Rebuild(img, pe.Options{PreferredBase: preferred &^ 0xffff, ResolveExport: func(va uint64) []pe.Symbol {
			return []pe.Symbol{{Module: "kernel32.dll", Name: "ExitProcess", Ordinal: uint16(va), Preferred: va}}
		}})
		if !bytes.Equal(before, img.Mem) {
			t.Fatal("the image was changed")
		}
		if err != nil {
			if file != nil {
				t.Fatal("result with an error")
			}
			return
		}
		if limit := 2*len(img.Mem) + 16<<20; len(file.Data) > limit {
			t.Fatalf("file of %d bytes from an image of %d", len(file.Data), len(img.Mem))
		}
		b := file.Fidelity.Bytes
		if sum := b.Resident + b.Transition + b.Prototype + b.Private + b.DemandZero + b.FileCache + b.Assumed + b.Missing + b.Overlay; sum != uint64(len(file.Data)) {
			t.Fatalf("bytes by provenance add up to %d of %d", sum, len(file.Data))
		}
		var last uint64
		for _, g := range file.Fidelity.Gaps {
			if g.Start < last || g.Start >= g.End || g.End > uint64(len(file.Data)) {
				t.Fatalf("gap %v out of order", g)
			}
			last = g.End
		}
		pe.Hash(file)
	})
}

// FuzzHeaders: no panic, no result with an error, no section beyond the table.
func FuzzHeaders(f *testing.F) {
	for _, s := range fuzzSeeds(f) {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := pe.ParseHeaders(b)
		if err != nil && h != nil {
			t.Fatal("result with an error")
		}
		if err == nil && len(h.Sections)*40 > len(b) {
			t.Fatalf("%d sections in %d bytes", len(h.Sections), len(b))
		}
	})
}

// FuzzImports: walking imports and exports of any image ends and stays inside.
func FuzzImports(f *testing.F) {
	addMapped(f, func(mem []byte, base uint64) { f.Add(mem, base, uint64(0x1111111111111111)) })
	f.Fuzz(func(t *testing.T, mem []byte, base, mask uint64) {
		img := fuzzImage(mem, base, mask)
		x := pe.NewExportIndex()
		n := x.Add(img, "fuzz.dll")
		if n > len(img.Mem) {
			t.Fatalf("%d exports in %d bytes", n, len(img.Mem))
		}
		x.Resolve(base + 0x1000)
		if h, err := pe.ParseHeaders(mem); err == nil {
			if got := pe.ImportHash(mem, h); got != "" && len(got) != 32 {
				t.Fatalf("import hash %q", got)
			}
		}
	})
}
