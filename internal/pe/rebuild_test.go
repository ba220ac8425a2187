package pe_test

import (
	"bytes"
	"fmt"
	"math/rand"
	"os"
	"sort"
	"testing"

	"vmav.dev/vmav/internal/pe"
	"vmav.dev/vmav/internal/pe/petest"
)

// imageOf makes an Image with all pages resident.
func imageOf(name string, m *petest.Mapped) *pe.Image {
	pages := make([]pe.Origin, len(m.Mem)/pe.PageSize)
	for i := range pages {
		pages[i] = pe.Resident
	}
	return &pe.Image{Name: name, Base: m.Base, Mem: m.Mem, Pages: pages}
}

func resolver(l *petest.Loader) func(uint64) []pe.Symbol {
	return func(va uint64) []pe.Symbol {
		e, ok := l.Lookup(va)
		if !ok {
			return nil
		}
		return []pe.Symbol{{Module: e.Module, Name: e.Name, Ordinal: e.Ordinal}}
	}
}

// originalBase reads the preferred base of a file, as a loader records it.
func originalBase(file []byte) uint64 {
	h, err := pe.ParseHeaders(file)
	if err != nil {
		return 0
	}
	return h.ImageBase
}

// firstDifference compares a rebuilt file with its original up to the overlay.
func firstDifference(got, want []byte) (off int, n int) {
	off = -1
	for i := range got {
		if i >= len(want) || got[i] != want[i] {
			if off < 0 {
				off = i
			}
			n++
		}
	}
	return off, n
}

// TestCorpus maps every file of the corpus at a random base, with imports bound,
// rebuilds it and compares it with the file, byte for byte up to the overlay.
func TestCorpus(t *testing.T) {
	for _, mode := range []struct {
		name   string
		loader bool // the loader's record of the preferred base is at hand
		shared bool // and the section's pages under the process's copies
		share  float64
	}{{"loader's record", true, false, 0.995}, {"image alone", false, false, 0.90}, {"section's pages", true, true, 0.999}} {
		t.Run(mode.name, func(t *testing.T) {
			l := &petest.Loader{Rand: rand.New(rand.NewSource(1)), ResolveDelay: true}
			var rb pe.Rebuilder
			causes := map[string]int{}
			var unlike []string
			methods := map[pe.BaseMethod]int{}
			features := map[string]int{}
			total, same := 0, 0
			for _, path := range corpusFiles(t) {
				file, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				is64 := bytes.Contains(file[:min(len(file), 1024)], []byte("PE\x00\x00\x64\x86"))
				m, err := l.Map(file, l.Base(is64))
				if err != nil {
					causes["not loadable: "+err.Error()]++
					continue
				}
				opt := pe.Options{ResolveExport: resolver(l)}
				if mode.loader {
					opt.PreferredBase = originalBase(file)
				}
				countFeatures(features, m, file)
				guests := !isARM64(file) // no guest of an x86 host runs the others
				if guests {
					total++
				}
				img := imageOf(path, m)
				if mode.shared {
					img = sharedImage(path, m)
				}
				f, err := rb.Rebuild(img, opt)
				if err != nil {
					unlike = append(unlike, fmt.Sprintf("%s: %v", path, err))
					continue
				}
				methods[f.Fidelity.Base.Method]++
				if len(f.Fidelity.Conflicts) > 0 {
					t.Errorf("%s: the loader's changes are taken for others': %+v", path, f.Fidelity.Conflicts)
				}
				if b := f.Fidelity.Base; b.Proven && b.Preferred != originalBase(file) {
					t.Errorf("%s: base %#x called proven by %s, is %#x", path, b.Preferred, b.Method, originalBase(file))
				}
				off, n := firstDifference(f.Data, file)
				if n == 0 {
					if guests {
						same++
					}
					continue
				}
				unlike = append(unlike, fmt.Sprintf("%s: %d bytes differ, the first at %#x: %v", path, n, off, causesOf(f, file)))
				if got := causesOf(f, file); got["none"] > 0 {
					t.Errorf("%s: %d bytes differ that the record knows no cause for", path, got["none"])
				}
				if exact := f.Fidelity.Exact(); exact {
					t.Errorf("%s: differs at %#x but its record says exact", path, off)
				}
			}
			if total < 500 {
				t.Errorf("corpus has %d loadable files, want at least 500", total)
			}
			t.Logf("%d of %d files of x86 and x64 byte-identical up to the overlay; bases by %v; left out %v", same, total, methods, causes)
			t.Logf("of them have %v", features)
			for _, name := range []string{"x86", "x64", "relocations", "imports by ordinal", "delay imports", "guard pointers", "cookie", "TLS", "certificate",
				"overlay", "checksum", ".NET", "packed by UPX", "control flow guard", "driver", "NSIS"} {
				if features[name] == 0 {
					t.Errorf("no file with %s: run make check-deps", name)
				}
			}
			sort.Strings(unlike)
			for _, u := range unlike {
				t.Log(u)
			}
			if got := float64(same) / float64(total); got < mode.share {
				t.Errorf("%.2f %% byte-identical, want %.2f %%", 100*got, 100*mode.share)
			}
		})
	}
}

func isARM64(file []byte) bool {
	h, err := pe.ParseHeaders(file)
	return err == nil && h.Machine == 0xaa64
}

// causesOf counts the bytes in which a rebuilt file differs from its original, by what
// the record says of them.
func causesOf(f *pe.File, file []byte) map[string]int {
	n := make(map[string]int)
	gaps := f.Fidelity.Gaps
	base := f.Fidelity.Base
	for o := range f.Data {
		if o < len(file) && f.Data[o] == file[o] {
			continue
		}
		for len(gaps) > 0 && gaps[0].End <= uint64(o) {
			gaps = gaps[1:]
		}
		switch {
		case len(gaps) > 0 && gaps[0].Start <= uint64(o):
			n[string(gaps[0].Cause)]++
		case !base.Proven && base.Preferred != originalBase(file):
			n[fmt.Sprintf("base %#x by %s, is %#x", base.Preferred, base.Method, originalBase(file))]++
		default:
			n["none"]++
		}
	}
	return n
}

// countFeatures counts what a file asked of the loader.
func countFeatures(n map[string]int, m *petest.Mapped, file []byte) {
	h, err := pe.ParseHeaders(file)
	if err != nil {
		return
	}
	end := uint32(0)
	for _, s := range h.Sections {
		end = max(end, s.RawOffset+s.RawSize)
	}
	for name, has := range map[string]bool{
		"x86": h.Machine == 0x14c, "x64": h.Machine == 0x8664, "relocations": m.Relocated > 0, "imports": m.Imports > 0,
		"imports by ordinal": m.Ordinals > 0, "delay imports": m.Delay > 0, "guard pointers": m.Guards > 0, "cookie": m.Cookie,
		"TLS": h.Dirs[9].RVA != 0, "certificate": h.Dirs[4].Size != 0, "overlay": int(end) < len(file), "checksum": h.CheckSum != 0,
		".NET":          h.Dirs[14].RVA != 0,
		"packed by UPX": len(h.Sections) > 1 && h.Sections[0].Name == "UPX0", "control flow guard": h.DLLCharacteristics&0x4000 != 0,
		"bound imports": h.Dirs[11].Size != 0, "ARM64": h.Machine == 0xaa64, "driver": h.Subsystem == 1, "NSIS": bytes.Contains(file, []byte("NullsoftInst")),
		"empty first section (packed)": len(h.Sections) > 1 && h.Sections[0].RawSize == 0,
	} {
		if has {
			n[name]++
		}
	}
}
