package pe_test

import (
	"bytes"
	"encoding/binary"
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

// fuzzImages are mapped forms that fuzzing starts from. What is fuzzed is a list
// of edits to one of them, six bytes each: that keeps inputs small, and most of
// them close enough to an image to get past the headers.
func fuzzImages(f *testing.F) [][]byte {
	l := &petest.Loader{Rand: rand.New(rand.NewSource(5)), Widen: true}
	kernel, _, _ := kernelFile()
	overrides, _ := overrideFile()
	var images [][]byte
	for _, s := range append(fuzzSeeds(f), kernel, dotNetFile(), overrides, arm64xFile()) {
		m, err := l.Map(s, 0x5000000)
		if err != nil {
			continue
		}
		images = append(images, m.Mem[:min(len(m.Mem), 1<<16)])
	}
	return images
}

// edited returns an image with edits applied and origins from mask.
func edited(images [][]byte, which uint8, edits []byte, base, mask uint64) *pe.Image {
	mem := bytes.Clone(images[int(which)%len(images)])
	for ; len(edits) >= 6; edits = edits[6:] {
		copy(mem[int(binary.LittleEndian.Uint16(edits))%len(mem):], edits[2:6])
	}
	n := len(mem) / pe.PageSize
	img := &pe.Image{Name: "fuzz", Base: base &^ 0xfff, Mem: mem, Pages: make([]pe.Origin, n)}
	for i := range img.Pages {
		img.Pages[i] = pe.Origin(mask >> (4 * (i % 16)) & 15 % (uint64(pe.PagedIn) + 1))
		if img.Pages[i] == pe.Absent {
			clear(img.Mem[i*pe.PageSize : (i+1)*pe.PageSize])
		}
	}
	return img
}

func addEdits(f *testing.F, images [][]byte, add func(which uint8, edits []byte)) {
	le := binary.LittleEndian
	for i := range images {
		add(uint8(i), nil)
		nt := int(le.Uint32(images[i][0x3c:]))
		for _, o := range []int{20, 24 + 16, 24 + 32, 24 + 60, 24 + 96, 24 + 104, 24 + 136, 24 + 176, 24 + 200, 24 + 0xe0 + 8, 24 + 0xf0 + 16} {
			add(uint8(i), le.AppendUint32(le.AppendUint16(nil, uint16(nt+o)), 0xfffff000>>(o%20)))
		}
	}
}

// FuzzRebuild: no panic, no result with an error, bounded size, counts that add up.
func FuzzRebuild(f *testing.F) {
	images := fuzzImages(f)
	addEdits(f, images, func(which uint8, edits []byte) {
		f.Add(which, edits, uint64(0x5000000), uint64(0x1111111111111111), uint64(0x400000))
		f.Add(which, edits, uint64(0x7ff612340000), uint64(0x1010201050103011), uint64(0))
		f.Add(which, edits, uint64(0x7ff612340800), uint64(0x1513515551553511), uint64(0))
	})
	f.Fuzz(func(t *testing.T, which uint8, edits []byte, base, mask, preferred uint64) {
		img := edited(images, which, edits, base, mask)
		if base&0x800 != 0 { // the section's pages are at hand, and their indices lie
			img.PrivateKnown = true
			for p := 0; p <= len(img.Pages); p += 1 + int(base&3) {
				from := p * pe.PageSize % len(images[0])
				img.Shared = append(img.Shared, pe.SharedPage{Page: p - int(base>>2&1), Data: images[0][from:min(from+pe.PageSize, len(images[0]))]})
			}
		}
		before := bytes.Clone(img.Mem)
		var pages []pe.FilePage
		if which >= 128 { // the file's cache holds pieces, as hostile as the rest
			pages = []pe.FilePage{{Offset: preferred % (1 << 17), Data: img.Mem[:min(5000, len(img.Mem))]}, {Offset: base & 0x7fff, Data: img.Mem[:100]}}
		}
		file, err := pe.Rebuild(img, pe.Options{PreferredBase: preferred &^ 0xffff, FilePages: pages, FileSize: uint64(which&64) << 12,
			ResolveExport: func(va uint64) []pe.Symbol {
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
		if sum := b.Sum(); sum != uint64(len(file.Data)) {
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
		file.Fidelity.Describe()
	})
}

// FuzzImports: walking imports and exports of any image ends and stays inside.
func FuzzImports(f *testing.F) {
	images := fuzzImages(f)
	addEdits(f, images, func(which uint8, edits []byte) { f.Add(which, edits, uint64(0x5000000), uint64(0x1111111111111111)) })
	f.Fuzz(func(t *testing.T, which uint8, edits []byte, base, mask uint64) {
		img := edited(images, which, edits, base, mask)
		x := pe.NewExportIndex()
		if n := x.Add(img, "fuzz.dll"); n > len(img.Mem) {
			t.Fatalf("%d exports in %d bytes", n, len(img.Mem))
		}
		x.Resolve(base + 0x1000)
		if _, rvas, err := pe.FindExports(img, "a", "DllMain", "NtClose"); err == nil {
			for name, rva := range rvas {
				if uint64(rva) >= uint64(len(img.Mem)) {
					t.Fatalf("export %s at %#x of %#x bytes", name, rva, len(img.Mem))
				}
			}
		}
		if h, err := pe.ParseHeaders(img.Mem); err == nil {
			if got := pe.ImportHash(img.Mem, h); got != "" && len(got) != 32 {
				t.Fatalf("import hash %q", got)
			}
		}
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
