package pe_test

import (
	"bytes"
	"math/rand"
	"os"
	"testing"

	"vmav.dev/vmav/internal/pe"
	"vmav.dev/vmav/internal/pe/petest"
)

// sharedImage makes an image of a process that has copies of its own of the pages that
// differ from the section's, which are at hand for the rebuild.
func sharedImage(name string, m *petest.Mapped) *pe.Image {
	img := imageOf(name, m)
	img.PrivateKnown = true
	for p := range img.Pages {
		at := p * pe.PageSize
		if shared := m.Section[at : at+pe.PageSize]; !bytes.Equal(shared, m.Mem[at:at+pe.PageSize]) {
			img.Pages[p] = pe.Private
			img.Shared = append(img.Shared, pe.SharedPage{Page: p, Data: shared})
		}
	}
	return img
}

// TestSharedPages has processes write all over their writable sections and patch five
// bytes of their code. With the section's pages at hand the rebuilt file is the file,
// but for the patch, which is the one conflict.
func TestSharedPages(t *testing.T) {
	rnd := rand.New(rand.NewSource(12))
	l := &petest.Loader{Rand: rnd, ResolveDelay: true}
	var rb pe.Rebuilder
	files, exact, patched, written := 0, 0, 0, 0
	sample(t, 8, l, func(path string, file []byte, m *petest.Mapped) {
		h, err := pe.ParseHeaders(file)
		if err != nil || h.SectionAlignment < pe.PageSize {
			return // mapped in one piece, where sections do not count
		}
		patch := uint64(0)
		for _, s := range h.Sections {
			n := min(s.VirtualSize, s.RawSize)
			switch {
			case s.Executable() && !s.Writable() && patch == 0 && n > 0x200:
				patch = uint64(s.VirtualAddress) + 0x100 + uint64(rnd.Intn(int(n-0x110)))
			case s.Writable() && n > 0:
				for range 20 {
					m.Mem[int(s.VirtualAddress)+rnd.Intn(int(n))] ^= 0x55
				}
				written++
			}
		}
		var was []byte
		if patch != 0 {
			was = bytes.Clone(m.Mem[patch : patch+5])
			for i := range was {
				m.Mem[int(patch)+i] = ^was[i]
			}
		}
		files++
		f, err := rb.Rebuild(sharedImage(path, m), pe.Options{ResolveExport: resolver(l), PreferredBase: originalBase(file)})
		if err != nil {
			t.Errorf("%s: %v", path, err)
			return
		}
		c := f.Fidelity.Conflicts
		if patch != 0 {
			// The bytes of a relocated word or of an import differ as they may.
			if len(c) != 1 || c[0].RVA != patch || c[0].Len() != 5 || !c[0].Code || c[0].Source != "prototype" || len(c[0].Memory) != 10 {
				if len(c) == 0 {
					t.Errorf("%s: the patch at %#x was not noticed", path, patch)
				}
				for _, c := range c {
					if c.RVA < patch || c.RVA+c.Len() > patch+5 {
						t.Errorf("%s: conflict %+v besides the patch at %#x", path, c, patch)
					}
				}
			}
			patched++
		} else if len(c) != 0 {
			t.Errorf("%s: conflicts %+v", path, c)
		}
		wrong := 0
		for o := range f.Data {
			if rva, ok := mappedAt(f.Headers, uint64(o)); f.Data[o] != file[o] && (!ok || patch == 0 || rva < patch || rva >= patch+5) {
				// What a relocation next to the patch changed goes with it.
				if !ok || rva+16 < patch || rva > patch+16 {
					wrong++
				}
			}
		}
		if wrong > 0 {
			off, _ := firstDifference(f.Data, file)
			t.Errorf("%s: %d bytes differ, the first at %#x (patch at %#x)", path, wrong, off, patch)
		}
		memory := 0
		for _, s := range f.Fidelity.Sections {
			if s.State == pe.SectionMemory {
				memory++
			}
		}
		if memory == 0 {
			exact++
		} else {
			t.Errorf("%s: %d sections are called as they are now", path, memory)
		}
	})
	if files < 80 || patched < 60 || written < 60 {
		t.Errorf("%d files, %d patched, %d writable sections", files, patched, written)
	}
	t.Logf("%d files, %d patched, %d with all sections settled", files, patched, exact)
}

// TestChangedHeaders wipes and forges the headers of a process's copy: the section's
// own page has them, and where that is gone the cached file.
func TestChangedHeaders(t *testing.T) {
	path := wineDir + "winhttp.dll"
	l := &petest.Loader{Rand: rand.New(rand.NewSource(7))}
	file := readFile(t, path)
	for name, change := range map[string]func(mem []byte){
		"wiped":  func(mem []byte) { clear(mem[:pe.PageSize]) },
		"forged": func(mem []byte) { put32(mem, ntAt(mem)+24+0xf0+20, 0x600) },
	} {
		m, err := l.Map(file, l.Base(true))
		if err != nil {
			t.Fatal(err)
		}
		change(m.Mem)
		img := sharedImage(path, m)
		f, err := pe.Rebuild(img, pe.Options{PreferredBase: originalBase(file)})
		if err != nil {
			t.Fatal(err)
		}
		if _, n := firstDifference(f.Data, file); n != 0 || f.Fidelity.Headers != pe.HeadersShared || len(f.Fidelity.Conflicts) == 0 {
			t.Errorf("%s: %d bytes differ, headers from the %s, %d conflicts", name, n, f.Fidelity.Headers, len(f.Fidelity.Conflicts))
		}
		img.Shared = img.Shared[1:]
		layout := &pe.Layout{PE64: true, Sections: f.Headers.Sections}
		if f, err = pe.Rebuild(img, pe.Options{FilePages: cachePages(file[:0x2000]), Layout: layout}); err != nil {
			t.Fatal(err)
		}
		if _, n := firstDifference(f.Data, file); n != 0 || f.Fidelity.Headers != pe.HeadersCache || f.Fidelity.Base.Method != pe.BaseCache {
			t.Errorf("%s: %d bytes differ, headers from the %s, base by %s", name, n, f.Fidelity.Headers, f.Fidelity.Base.Method)
		}
	}
	m, err := l.Map(file, l.Base(true))
	if err != nil {
		t.Fatal(err)
	}
	img := sharedImage(path, m)
	img.Pages[0] = pe.Absent
	clear(img.Mem[:pe.PageSize])
	f, err := pe.Rebuild(img, pe.Options{FilePages: cachePages(file[:0x1000])})
	if err != nil {
		t.Fatal(err)
	}
	if _, n := firstDifference(f.Data, file); n != 0 || f.Fidelity.Headers != pe.HeadersCache || !f.Fidelity.Complete() {
		t.Errorf("absent: %d bytes differ, headers from the %s, complete %v", n, f.Fidelity.Headers, f.Fidelity.Complete())
	}
}

// TestRelocatedByItself maps an image where its section is not: the process has relocated
// it, so that its pages and the section's differ in every address and that is no conflict.
func TestRelocatedByItself(t *testing.T) {
	l := &petest.Loader{Rand: rand.New(rand.NewSource(7))}
	path := "/usr/i686-w64-mingw32/lib/zlib1.dll"
	file := readFile(t, path)
	section, err := l.Map(file, 0x6f000000)
	if err != nil {
		t.Fatal(err)
	}
	m, err := l.Map(file, 0x5a000000)
	if err != nil {
		t.Fatal(err)
	}
	m.Section = section.Section
	f, err := pe.Rebuild(sharedImage(path, m), pe.Options{PreferredBase: originalBase(file)})
	if err != nil {
		t.Fatal(err)
	}
	if _, n := firstDifference(f.Data, file); n != 0 || len(f.Fidelity.Conflicts) != 0 {
		t.Errorf("%d bytes differ, %d conflicts", n, len(f.Fidelity.Conflicts))
	}
}

// TestMemoryOnly unpacks code into a section that has no bytes in the file and over one
// that has: both are named, and the file stays the file.
func TestMemoryOnly(t *testing.T) {
	b := petest.Builder{Is64: true, Base: 0x140000000, DLLFlags: 0x40, Sections: []petest.Section{
		{Name: "UPX0", RVA: 0x1000, Size: 0x3000, Flags: 0xe0000080},
		{Name: "UPX1", RVA: 0x4000, Data: noise(3, 0x1200), Flags: 0xe0000040},
		{Name: ".rsrc", RVA: 0x6000, Data: noise(4, 0x200), Flags: dataFlags}}}
	file := b.File()
	m, err := (&petest.Loader{Rand: rand.New(rand.NewSource(9))}).Map(file, 0x150000000)
	if err != nil {
		t.Fatal(err)
	}
	copy(m.Mem[0x1000:], noise(5, 0x1800))
	copy(m.Mem[0x4000:], noise(6, 0x100))
	f, err := pe.Rebuild(sharedImage("packed", m), pe.Options{PreferredBase: 0x140000000})
	if err != nil {
		t.Fatal(err)
	}
	if _, n := firstDifference(f.Data, file); n != 0 || len(f.Fidelity.Conflicts) != 0 {
		t.Errorf("%d bytes differ, conflicts %v", n, f.Fidelity.Conflicts)
	}
	if got := f.Fidelity.MemoryOnly; len(got) != 2 || got[0] != (pe.Range{Start: 0x1000, End: 0x3000}) || got[1] != (pe.Range{Start: 0x4000, End: 0x5000}) {
		t.Errorf("memory only %v", got)
	}
}

func readFile(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
