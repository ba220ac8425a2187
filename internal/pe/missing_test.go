package pe_test

import (
	"fmt"
	"math/rand"
	"os"
	"testing"

	"vmav.dev/vmav/internal/pe"
	"vmav.dev/vmav/internal/pe/petest"
)

// sample returns every nth file of the corpus that can be mapped, loaded.
func sample(t *testing.T, n int, l *petest.Loader, each func(path string, file []byte, m *petest.Mapped)) {
	t.Helper()
	for i, path := range corpusFiles(t) {
		if i%n != 0 {
			continue
		}
		file, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		h, err := pe.ParseHeaders(file)
		if err != nil {
			continue
		}
		if m, err := l.Map(file, l.Base(h.PE64)); err == nil {
			each(path, file, m)
		}
	}
}

// trim takes away a share of the pages, in percent, but the first.
func trim(img *pe.Image, r *rand.Rand, percent int) {
	for p := 1; p < len(img.Pages); p++ {
		if r.Intn(100) < percent {
			img.Pages[p] = pe.Absent
			clear(img.Mem[p*pe.PageSize : (p+1)*pe.PageSize])
		} else if r.Intn(3) == 0 {
			img.Pages[p] = pe.Transition
		}
	}
}

// checkRecord holds the fidelity record against the original file: what it calls
// known must be the file's, what it calls missing must lie on missing pages, and
// the counts must be those of the bytes.
func checkRecord(img *pe.Image, f *pe.File, file []byte) error {
	fid := f.Fidelity
	unsure := make([]pe.Cause, len(f.Data))
	var last uint64
	for _, g := range fid.Gaps {
		if g.Start < last || g.End <= g.Start || g.End > uint64(len(f.Data)) {
			return fmt.Errorf("gaps out of order at %#x", g.Start)
		}
		last = g.End
		for o := g.Start; o < g.End; o++ {
			unsure[o] = g.Cause
		}
	}
	lc := f.Headers.Dirs[10]
	lostConfig := lc.RVA != 0 && int((lc.RVA+lc.Size)/pe.PageSize) < len(img.Pages) &&
		(img.Pages[lc.RVA/pe.PageSize] == pe.Absent || img.Pages[(lc.RVA+lc.Size)/pe.PageSize] == pe.Absent)
	var missing, unknown, assumed uint64
	for o := range f.Data {
		switch unsure[o] {
		case "":
			// Where the load configuration is lost nothing tells which word of the
			// writable sections is the cookie; they are called as they are now.
			if f.Data[o] != file[o] && !(lostConfig && writableAt(f.Headers, o)) {
				return fmt.Errorf("byte at %#x differs and is not in a gap", o)
			}
		case pe.CauseMissing:
			missing++
			if rva, ok := mappedAt(f.Headers, uint64(o)); !ok || img.Pages[rva/pe.PageSize] != pe.Absent {
				return fmt.Errorf("byte at %#x called missing, but its page is there", o)
			}
			if f.Data[o] != 0 {
				return fmt.Errorf("missing byte at %#x is not zero", o)
			}
		case pe.CauseUnmapped:
			assumed++
		default:
			unknown++
		}
	}
	b := fid.Bytes
	if b.Missing != missing || b.Unknown != unknown || b.Assumed != assumed {
		return fmt.Errorf("record counts %d missing, %d unknown, %d assumed; the gaps have %d, %d, %d",
			b.Missing, b.Unknown, b.Assumed, missing, unknown, assumed)
	}
	if sum := b.Sum(); sum != uint64(len(f.Data)) {
		return fmt.Errorf("bytes by provenance add up to %d, the file has %d", sum, len(f.Data))
	}
	if fid.Complete() != (missing == 0) {
		return fmt.Errorf("Complete() is %v with %d bytes missing", fid.Complete(), missing)
	}
	return nil
}

// mappedAt finds where a file offset is mapped, from the section table.
func mappedAt(h *pe.Headers, off uint64) (uint64, bool) {
	for _, s := range h.Sections {
		if o := uint64(s.RawOffset) &^ 511; s.RawOffset != 0 && off >= o && off < o+uint64(s.RawSize) {
			return uint64(s.VirtualAddress) + off - o, true
		}
	}
	return off, off < uint64(h.SizeOfHeaders)
}

// TestMissingPages trims pages at random and holds the record against the file.
func TestMissingPages(t *testing.T) {
	rnd := rand.New(rand.NewSource(2))
	l := &petest.Loader{Rand: rnd, ResolveDelay: true}
	var rb pe.Rebuilder
	var present, unknown uint64
	files := 0
	sample(t, 7, l, func(path string, file []byte, m *petest.Mapped) {
		img := imageOf(path, m)
		percent := 10 + 10*(files%9)
		trim(img, rnd, percent)
		files++
		f, err := rb.Rebuild(img, pe.Options{ResolveExport: resolver(l), PreferredBase: originalBase(file)})
		if err != nil {
			t.Errorf("%s: %v", path, err)
			return
		}
		if err := checkRecord(img, f, file); err != nil {
			t.Errorf("%s at %d %%: %v", path, percent, err)
		}
		present += uint64(len(f.Data)) - f.Fidelity.Bytes.Missing
		unknown += f.Fidelity.Bytes.Unknown
	})
	if files < 80 {
		t.Errorf("only %d files", files)
	}
	// What is present but in doubt are words whose relocation or import name is on
	// a missing page: a small share.
	if share := float64(unknown) / float64(present); share > 0.02 {
		t.Errorf("%.2f %% of the present bytes are unknown", 100*share)
	}
	t.Logf("%d files: %d bytes present, %d of them unknown", files, present, unknown)
}

// TestDiscarded takes away what a kernel frees after a driver has started: the
// relocation table and other discardable sections. Words that point into the
// image are undone by that, and the record calls each of them unknown.
func TestDiscarded(t *testing.T) {
	for _, path := range []string{wineDir + "winhttp.dll", wineDir + "mountmgr.sys", wineDir + "ole32.dll", hostileBase} {
		img, file := mapFile(t, path)
		h, err := pe.ParseHeaders(file)
		if err != nil {
			t.Fatal(err)
		}
		const discardable = 0x02000000
		for _, s := range h.Sections {
			if s.Characteristics&discardable == 0 {
				continue
			}
			for p := s.VirtualAddress / pe.PageSize; p < (s.VirtualAddress+s.VirtualSize+pe.PageSize-1)/pe.PageSize; p++ {
				img.Pages[p] = pe.Absent
				clear(img.Mem[p*pe.PageSize : (p+1)*pe.PageSize])
			}
		}
		f, err := pe.Rebuild(img, pe.Options{PreferredBase: h.ImageBase})
		if err != nil {
			t.Fatal(err)
		}
		if err := checkRecord(img, f, file); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		wrong := 0
		for o := range f.Data {
			if rva, ok := mappedAt(h, uint64(o)); ok && int(rva/pe.PageSize) < len(img.Pages) && img.Pages[rva/pe.PageSize] != pe.Absent &&
				f.Data[o] != file[o] {
				wrong++
			}
		}
		if r := f.Fidelity.Relocations; r.Guessed == 0 || wrong > 4*r.Guessed/10 {
			t.Errorf("%s: %d relocations guessed, %d bytes wrong", path, r.Guessed, wrong)
		}
		t.Logf("%s: %d relocations guessed, %d bytes wrong, %d in doubt", path, f.Fidelity.Relocations.Guessed, wrong, f.Fidelity.Bytes.Unknown)
	}
}
