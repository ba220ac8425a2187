package pe_test

import (
	"bytes"
	"encoding/json"
	"math/rand"
	"os"
	"testing"

	"vmav.dev/vmav/internal/pe"
	"vmav.dev/vmav/internal/pe/petest"
)

// mapFile maps a file of the corpus at a random base.
func mapFile(t *testing.T, path string) (*pe.Image, []byte) {
	t.Helper()
	file, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	h, err := pe.ParseHeaders(file)
	if err != nil {
		t.Fatal(err)
	}
	l := &petest.Loader{Rand: rand.New(rand.NewSource(7))}
	m, err := l.Map(file, l.Base(h.PE64))
	if err != nil {
		t.Fatal(err)
	}
	return imageOf(path, m), file
}

// cachePages cuts a file into pages as a cache holds them.
func cachePages(file []byte) []pe.FilePage {
	var pages []pe.FilePage
	for off := 0; off < len(file); off += 4096 {
		pages = append(pages, pe.FilePage{Offset: uint64(off), Data: file[off:min(len(file), off+4096)]})
	}
	return pages
}

// TestFileCache rebuilds with the file's own pages at hand: holes are filled, the
// overlay is there, writable sections are the file's, and the whole is the file.
func TestFileCache(t *testing.T) {
	img, file := mapFile(t, wineDir+"notepad.exe")
	rnd := rand.New(rand.NewSource(8))
	trim(img, rnd, 50)
	img.Mem[0x7000+40] ^= 0xff // .data, written since
	f, err := pe.Rebuild(img, pe.Options{FilePages: cachePages(file), FileSize: uint64(len(file))})
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(f.Data, file) {
		off, n := firstDifference(f.Data, file)
		t.Fatalf("%d of %d bytes, %d differ, the first at %#x", len(f.Data), len(file), n, off)
	}
	fid := f.Fidelity
	if !fid.Complete() || !fid.Exact() || fid.Base.Method != pe.BaseCache || len(fid.Conflicts) != 0 || fid.Coverage() != 1 {
		t.Errorf("complete %v, exact %v, base by %s, %d conflicts", fid.Complete(), fid.Exact(), fid.Base.Method, len(fid.Conflicts))
	}
	if fid.Supports(pe.SigFileHash) != pe.SupportYes || fid.Supports(pe.SigEndOfFile) != pe.SupportYes {
		t.Errorf("file hash %s, end of file %s", fid.Supports(pe.SigFileHash), fid.Supports(pe.SigEndOfFile))
	}
}

// TestOverlayNotCached knows the file's size, but not what is beyond the sections.
func TestOverlayNotCached(t *testing.T) {
	img, file := mapFile(t, wineDir+"notepad.exe")
	f, err := pe.Rebuild(img, pe.Options{FileSize: uint64(len(file))})
	if err != nil {
		t.Fatal(err)
	}
	b := f.Fidelity.Bytes
	if len(f.Data) != len(file) || b.Overlay == 0 || b.Missing != 0 || !f.Fidelity.Complete() {
		t.Errorf("%d bytes of %d, overlay %d, missing %d", len(f.Data), len(file), b.Overlay, b.Missing)
	}
	if s := f.Fidelity.Supports(pe.SigFileHash); s != pe.SupportNo {
		t.Errorf("file hash %s without its overlay", s)
	}
}

// TestConflict patches code in memory: the difference is a finding, with its place.
func TestConflict(t *testing.T) {
	img, file := mapFile(t, wineDir+"notepad.exe")
	copy(img.Mem[0x2345:], []byte{0xe9, 0xde, 0xad, 0xbe, 0xef})
	f, err := pe.Rebuild(img, pe.Options{FilePages: cachePages(file)})
	if err != nil {
		t.Fatal(err)
	}
	c := f.Fidelity.Conflicts
	if len(c) != 1 || c[0].RVA != 0x2345 || c[0].Len() != 5 || !c[0].Code || c[0].Section != ".text" {
		t.Fatalf("conflicts %+v", c)
	}
	if !bytes.Equal(f.Data[0x2345:0x234a], []byte{0xe9, 0xde, 0xad, 0xbe, 0xef}) {
		t.Error("what runs is not what is scanned")
	}
}

// TestWipedHeaders wipes what makes headers easy to find, then all of them.
func TestWipedHeaders(t *testing.T) {
	path := wineDir + "notepad.exe"
	t.Run("signatures", func(t *testing.T) {
		img, file := mapFile(t, path)
		clear(img.Mem[:2])
		clear(img.Mem[0x3c:0x40])
		clear(img.Mem[0x80:0x84])
		f, err := pe.Rebuild(img, pe.Options{PreferredBase: originalBase(file)})
		if err != nil {
			t.Fatal(err)
		}
		if _, n := firstDifference(f.Data, file); n != 0 || f.Fidelity.Headers != pe.HeadersAnalysis {
			t.Errorf("%d bytes differ, headers from %s", n, f.Fidelity.Headers)
		}
		if f.Fidelity.Known(0, 2) || f.Fidelity.Exact() {
			t.Error("reconstructed bytes are called known")
		}
	})
	t.Run("section object", func(t *testing.T) {
		img, file := mapFile(t, path)
		h, err := pe.ParseHeaders(file)
		if err != nil {
			t.Fatal(err)
		}
		clear(img.Mem[:0x1000])
		f, err := pe.Rebuild(img, pe.Options{PreferredBase: h.ImageBase, Layout: &pe.Layout{
			Machine: h.Machine, PE64: h.PE64, EntryPoint: h.EntryPoint, SizeOfHeaders: h.SizeOfHeaders, Sections: h.Sections,
		}})
		if err != nil {
			t.Fatal(err)
		}
		if f.Fidelity.Headers != pe.HeadersLayout {
			t.Errorf("headers from %s", f.Fidelity.Headers)
		}
		for i, s := range h.Sections {
			if s.RawSize == 0 || s.Writable() {
				continue // the import table is in one, and where it is nobody knows
			}
			got, want := f.Data[s.RawOffset:s.RawOffset+s.RawSize], file[s.RawOffset:s.RawOffset+s.RawSize]
			if !bytes.Equal(got, want) && i != 2 {
				t.Errorf("section %s differs", s.Name)
			}
		}
	})
	t.Run("forged", func(t *testing.T) {
		img, file := mapFile(t, path)
		h, err := pe.ParseHeaders(file)
		if err != nil {
			t.Fatal(err)
		}
		nt := ntAt(img.Mem)
		put32(img.Mem, nt+24+0xf0+20, 0x600) // the first section's raw offset
		f, err := pe.Rebuild(img, pe.Options{Layout: &pe.Layout{PE64: true, Sections: h.Sections}})
		if err != nil {
			t.Fatal(err)
		}
		if f.Fidelity.Headers != pe.HeadersLayout || f.Headers.Sections[0].RawOffset != h.Sections[0].RawOffset {
			t.Errorf("headers from %s, first section at %#x", f.Fidelity.Headers, f.Headers.Sections[0].RawOffset)
		}
	})
	t.Run("nothing", func(t *testing.T) {
		img, file := mapFile(t, path)
		clear(img.Mem[:0x1000])
		f, err := pe.Rebuild(img, pe.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if f.Fidelity.Headers != pe.HeadersAnalysis || f.Fidelity.Complete() {
			t.Errorf("headers from %s, complete %v", f.Fidelity.Headers, f.Fidelity.Complete())
		}
		if !bytes.Contains(f.Data, file[0x1000:0x3000]) {
			t.Error("the code is not in the rebuilt file")
		}
		if _, err := pe.ParseHeaders(f.Data); err != nil {
			t.Error(err)
		}
	})
}

// TestHeaderBase leaves the file's base in the header, as old loaders do.
func TestHeaderBase(t *testing.T) {
	img, file := mapFile(t, wineDir+"winhttp.dll")
	h, err := pe.ParseHeaders(file)
	if err != nil {
		t.Fatal(err)
	}
	copy(img.Mem[ntAt(file)+48:ntAt(file)+56], file[ntAt(file)+48:])
	f, err := pe.Rebuild(img, pe.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if b := f.Fidelity.Base; b.Preferred != h.ImageBase || b.Method != pe.BaseHeader || b.Actual != img.Base {
		t.Errorf("base %+v", b)
	}
}

// TestMapped takes a saved mapped form with holes.
func TestMapped(t *testing.T) {
	img, file := mapFile(t, wineDir+"notepad.exe")
	got, err := pe.ImageFromMapped("saved", img.Mem[:len(img.Mem)-100], img.Base, []pe.Range{{Start: 0x2100, End: 0x3001}})
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Mem) != len(img.Mem) || got.Pages[1] != pe.Resident || got.Pages[2] != pe.Absent || got.Pages[3] != pe.Absent {
		t.Errorf("%d bytes, pages %v", len(got.Mem), got.Pages[:5])
	}
	f, err := pe.Rebuild(got, pe.Options{PreferredBase: originalBase(file)})
	if err != nil {
		t.Fatal(err)
	}
	if err := checkRecord(got, f, file); err != nil {
		t.Error(err)
	}
	if r := f.Fidelity.MissingRVAs; len(r) != 1 || r[0] != (pe.Range{Start: 0x2000, End: 0x4000}) {
		t.Errorf("missing %v", r)
	}
	for _, bad := range []pe.Range{{Start: 5, End: 1}, {Start: 0, End: 1 << 40}} {
		if _, err := pe.ImageFromMapped("saved", img.Mem, img.Base, []pe.Range{bad}); err == nil {
			t.Errorf("hole %v taken", bad)
		}
	}
	if _, err := json.Marshal(f.Fidelity); err != nil {
		t.Error(err)
	}
}

// TestMemoryView cuts a sparse region down to what it holds.
func TestMemoryView(t *testing.T) {
	r := &pe.Image{Name: "rwx", Base: 0x10000, Mem: make([]byte, 64*4096), Pages: make([]pe.Origin, 64)}
	for p := range r.Pages {
		r.Pages[p] = pe.Resident
	}
	for _, p := range []int{1, 2, 3, 10, 20, 21} {
		r.Mem[p*4096+7] = byte(p)
	}
	r.Pages[30] = pe.Absent
	v, err := pe.NewMemoryView(r, nil, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	if len(v.Data) != 6*4096 || len(v.Runs) != 3 || v.Runs[1].VA != 0x10000+10*4096 || v.Runs[1].Offset != 3*4096 || v.Absent != 4096 || v.Dropped != 0 ||
		v.PE {
		t.Errorf("view %+v", v.Runs)
	}
	v, err = pe.NewMemoryView(r, nil, 4*4096)
	if err != nil {
		t.Fatal(err)
	}
	if len(v.Data) != 3*4096 || v.Dropped != 3*4096 || v.Data[4096+7] != 10 {
		t.Errorf("%d bytes under a budget of four pages, %d dropped", len(v.Data), v.Dropped)
	}
	if v, err = pe.NewMemoryView(r, nil, 2*4096); err != nil || len(v.Data) != 2*4096 {
		t.Errorf("%v, %d bytes under a budget of two pages", err, len(v.Data))
	}
}

// TestParseRanges reads holes as a user gives them.
func TestParseRanges(t *testing.T) {
	got, err := pe.ParseRanges("0x1000-0x2000, 4096-8192,")
	if err != nil || len(got) != 2 || got[0] != (pe.Range{Start: 0x1000, End: 0x2000}) || got[1] != got[0] {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"1", "2-1", "x-y", "1-y", "-"} {
		if got, err := pe.ParseRanges(bad); err == nil || got != nil {
			t.Errorf("%q read as %v", bad, got)
		}
	}
}

// TestDerived rebuilds with the import address table missing: what it has in the
// file is known from the import names.
func TestDerived(t *testing.T) {
	names := importSection(0x2000, true, false, importNames...)
	addrs := bytes.Clone(names[40 : 40+4*len(importNames)])
	put32(names, 16, 0x3000)
	b := petest.Builder{Base: 0x400000, DLLFlags: 0x40, Flags: 0x2000, Dirs: map[int][2]uint32{1: {0x2000, 40}},
		Sections: []petest.Section{{Name: ".text", RVA: 0x1000, Data: noise(31, 0x300), Flags: codeFlags},
			{Name: ".idata", RVA: 0x2000, Data: names, Flags: dataFlags},
			{Name: ".iat", RVA: 0x3000, Data: append(addrs, make([]byte, 64)...), Flags: dataFlags}}}
	file := b.File()
	m, err := (&petest.Loader{Rand: rand.New(rand.NewSource(9))}).Map(file, 0x1230000)
	if err != nil {
		t.Fatal(err)
	}
	img := imageOf("derived", m)
	img.Pages[3] = pe.Absent
	clear(img.Mem[0x3000:0x4000])
	f, err := pe.Rebuild(img, pe.Options{PreferredBase: 0x400000})
	if err != nil {
		t.Fatal(err)
	}
	if err := checkRecord(img, f, file); err != nil {
		t.Error(err)
	}
	if got := f.Fidelity.Bytes; got.Derived != 16 || got.Missing != 0x200-16 || got.FileCache != 0 {
		t.Errorf("bytes %+v", got)
	}
	if c := f.Fidelity.Compact(0); len(c.Gaps) != 0 || len(c.Notes) != len(f.Fidelity.Notes)+1 || c.Bytes != f.Fidelity.Bytes {
		t.Errorf("compact record has %d gaps, notes %v", len(c.Gaps), c.Notes)
	}
}
