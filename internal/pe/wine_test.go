package pe_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"vmav.dev/vmav/internal/pe"
)

// wineModules are loaded on top of what every process has: large and small ones,
// with COM, with delay imports, with much data.
var wineModules = []string{
	"shell32.dll", "ole32.dll", "winhttp.dll", "comctl32.dll", "crypt32.dll", "setupapi.dll",
	"oleaut32.dll", "gdiplus.dll", "msvcrt.dll", "ucrtbase.dll", "riched20.dll", "version.dll",
	"dbghelp.dll", "wintrust.dll", "urlmon.dll", "d3d9.dll", "msxml3.dll", "quartz.dll",
}

// TestWine rebuilds what a real loader has mapped and compares it with the files: of
// programs that have run, where every byte that differs must be one that the program
// wrote itself (writtenBy), and of the same DLLs mapped by the same loader where no code of
// theirs has run, where no byte may differ.
func TestWine(t *testing.T) {
	if testing.Short() {
		t.Skip("starts Wine")
	}
	w := newWine(t)
	ran, again := w.start(t, wineModules...), w.start(t, wineModules...)
	var names []string
	still := []string{"-still"}
	index := pe.NewExportIndex()
	for path, img := range ran.images {
		index.Add(img, filepath.Base(path))
		names = append(names, path)
		if filepath.Ext(path) == ".dll" {
			still = append(still, "Z:"+w.still(t, path))
		}
	}
	slices.Sort(names)
	if len(names) < 30 {
		t.Fatalf("only %d images: %v", len(names), names)
	}
	untouched := w.start(t, still...)
	runs := wineRuns{ran: ran, again: again, causes: map[string]*causeCount{}}
	var rb pe.Rebuilder
	exact, wrongBase, runtime, stillExact, stillBytes, moved := 0, 0, 0, 0, 0, 0
	for _, path := range names {
		file, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		want := originalBase(file)
		f, err := rb.Rebuild(ran.images[path], pe.Options{ResolveExport: index.Resolve})
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if b := f.Fidelity.Base; b.Preferred != want {
			t.Logf("%s: base %#x by %s, want %#x", path, b.Preferred, b.Method, want)
			if b.Proven {
				t.Error("and it is called proven")
			}
			wrongBase++
			if f, err = rb.Rebuild(ran.images[path], pe.Options{ResolveExport: index.Resolve, PreferredBase: want}); err != nil {
				t.Fatal(err)
			}
		}
		if runs.compare(t, path, f, file) == 0 {
			exact++
		}
		if filepath.Base(path) == "host.exe" {
			runtime = f.Fidelity.Imports.Runtime
		}
		if filepath.Ext(path) != ".dll" {
			continue
		}
		copied := filepath.Join(w.dir, "still-"+filepath.Base(path))
		img := untouched.images[copied]
		if img == nil {
			t.Errorf("%s: the loader does not map it without starting it", path)
			continue
		}
		if file, err = os.ReadFile(copied); err != nil {
			t.Fatal(err)
		}
		if f, err = rb.Rebuild(img, pe.Options{PreferredBase: want}); err != nil {
			t.Fatal(err)
		}
		if off, n := firstDifference(f.Data, file); n != 0 {
			t.Errorf("%s, not started: %d bytes differ, the first at %#x: % x, want % x", path, n, off, f.Data[off:min(off+16, len(f.Data))],
				file[off:min(off+16, len(file))])
			continue
		}
		stillExact, stillBytes, moved = stillExact+1, stillBytes+len(f.Data), moved+f.Fidelity.Relocations.Undone
	}
	if runtime == 0 {
		t.Error("the host's relocations at run time were not found")
	}
	if wrongBase*20 > len(names) {
		t.Errorf("base of %d of %d images not found without the loader's record", wrongBase, len(names))
	}
	t.Logf("%d images, %d byte-identical; read-only bytes %d, of them different %d; writable bytes %d, of them different %d",
		len(names), exact, runs.readOnly, runs.readOnlyOff, runs.writable, runs.writableOff)
	t.Logf("%d DLLs that were mapped and not started, %d bytes, %d relocations undone: all identical", stillExact, stillBytes, moved)
	if moved == 0 {
		t.Error("nothing was relocated")
	}
	runs.report(t)
}

func writableAt(h *pe.Headers, off int) bool {
	for i := range h.Sections {
		s := &h.Sections[i]
		if s.RawOffset != 0 && off >= int(s.RawOffset) && off < int(s.RawOffset+s.RawSize) {
			return s.Writable()
		}
	}
	return false
}
