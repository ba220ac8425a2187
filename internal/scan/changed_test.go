package scan

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/ntguest"
	"vmav.dev/vmav/internal/pe"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/winstruct"
)

// pagesOf lists the pages of a guest that bear on what is scanned, by what they are.
func pagesOf(t testing.TB, src source.Source) map[string][]uint64 {
	t.Helper()
	ctx := context.Background()
	g, err := introspect.Open(ctx, src, winstruct.BuiltIn())
	if err != nil {
		t.Fatal(err)
	}
	procs, _, err := g.Processes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	sets := make(map[string]map[uint64]bool)
	add := func(kind string, frames []introspect.Frame, only func(i int) bool) {
		if sets[kind] == nil {
			sets[kind] = make(map[uint64]bool)
		}
		for i, f := range frames {
			if f.InMemory() && (only == nil || only(i)) {
				sets[kind][f.GPA] = true
			}
		}
	}
	for i := range procs {
		mods, _, err := g.Modules(ctx, &procs[i])
		if err != nil {
			t.Fatal(err)
		}
		for j := range mods {
			v := mods[j].VAD()
			if v == nil {
				continue
			}
			n := (v.End + 1 - v.Start) / pe.PageSize
			section, own := make([]introspect.Frame, n), make([]introspect.Frame, n)
			if _, err := g.SectionFrames(v, section); err != nil {
				t.Fatal(err)
			}
			if err := g.ImageFrames(ctx, &procs[i], v.Start, own, v.Start, section); err != nil {
				t.Fatal(err)
			}
			add("section", section, nil)
			add("private", own, func(i int) bool { return own[i].Origin == introspect.PagePrivate })
			add("executable private", own, func(i int) bool { return own[i].Origin == introspect.PagePrivate && own[i].Executable })
			_, cached, err := g.FileFrames(ctx, v.FileObject(), maxImage)
			if err != nil {
				t.Fatal(err)
			}
			add("cached file", cached, nil)
		}
		vads, _, err := g.VADs(ctx, &procs[i])
		if err != nil {
			t.Fatal(err)
		}
		budget := introspect.RegionTables
		for j := range vads {
			if vads[j].Image() {
				continue
			}
			runs, _, err := g.Committed(ctx, &procs[i], &vads[j], &budget)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range pieces(runs) {
				frames := make([]introspect.Frame, (r.End-r.Start)/pe.PageSize)
				if err := g.RangeFrames(ctx, &procs[i], &vads[j], r.Start, frames); err != nil {
					t.Fatal(err)
				}
				add("region", frames, nil)
			}
		}
	}
	drivers, _, err := g.Drivers(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range drivers[1:] {
		frames := make([]introspect.Frame, d.Size/pe.PageSize)
		if err := g.DriverFrames(ctx, d.Base, frames); err != nil {
			t.Fatal(err)
		}
		add("driver", frames, nil)
	}
	out := make(map[string][]uint64)
	for kind, set := range sets {
		out[kind] = slices.Sorted(maps.Keys(set))
	}
	return out
}

// TestWhatChangesIsScannedAgain changes pages of a guest between scans, of everything
// that a scan reads, by one byte or by what the engine finds. The scan that remembers
// tells the same as one that does not, and what can be found is.
func TestWhatChangesIsScannedAgain(t *testing.T) {
	src, _ := guest(t, ntguest.Options{Build: "10.0.22000", Seed: 11, FileCache: true, Implants: true, Trim: 10})
	planted := []byte("VMAV-PLANTED-LATER")
	e := &finder{marker: planted, name: "a"}
	opt := options{MinCoverage: DefaultMinCoverage}
	cache := NewCache()
	first := again(t, src, e, cache, opt)
	if len(first.Findings) == 0 || slices.ContainsFunc(first.Findings, func(f finding.Finding) bool { return f.Kind == finding.KindSignature }) {
		t.Fatalf("findings before: %+v", first.Findings)
	}
	rng := rand.New(rand.NewPCG(12, 13))
	all := pagesOf(t, src)
	for _, kind := range []string{"section", "private", "executable private", "cached file", "region", "driver"} {
		pages, found, told := all[kind], 0, 0
		if len(pages) == 0 {
			t.Errorf("no pages of kind %s", kind)
			continue
		}
		for i := range 4 {
			changed := edit(src)
			at := pages[rng.IntN(len(pages))]
			page := changed.page(t, at)
			off := 1024 + rng.IntN(2048)
			if i%2 == 0 {
				copy(page[off:], planted)
			} else {
				page[off] ^= byte(1 + rng.IntN(255))
			}
			what := fmt.Sprintf("%s page at %#x, change %d", kind, at, i)
			got, want := again(t, changed, e, cache, opt), again(t, changed, e, NewCache(), opt)
			same(t, what, got, want)
			if slices.ContainsFunc(got.Findings, func(f finding.Finding) bool { return f.Signature == "Test.Marker" }) {
				found++
			}
			if got.Unchanged < got.Images {
				told++
			}
		}
		t.Logf("%s: of 2 signatures %d found, of 4 changes %d seen in images", kind, found, told)
		if (kind == "section" || kind == "driver" || kind == "region" || kind == "executable private") && found == 0 {
			t.Errorf("%s: nothing was found", kind)
		}
	}
	same(t, "unchanged again", again(t, src, e, cache, opt), first)
}

// kernelWord finds where a word of the kernel's address space lies.
func kernelWord(t testing.TB, g *introspect.Guest, va uint64) uint64 {
	t.Helper()
	pa, err := g.Memory().Translate(va)
	if err != nil {
		t.Fatal(err)
	}
	return pa
}

// disguise changes the protection of the subsection that a page belongs to, from code to
// data.
func disguise(t testing.TB, g *introspect.Guest, v *introspect.VAD, page int, changed *edited) {
	t.Helper()
	profile, err := winstruct.BuiltIn().Find(g.Kernel().Identity)
	if err != nil {
		t.Fatal(err)
	}
	control, _ := profile.Struct("_CONTROL_AREA")
	sub, _ := profile.Struct("_SUBSECTION")
	flags, err := profile.Field("_SUBSECTION", "u")
	if err != nil {
		t.Fatal(err)
	}
	f, err := profile.Field("_MMSUBSECTION_FLAGS", "Protection")
	if err != nil {
		t.Fatal(err)
	}
	subs, err := g.Subsections(v)
	if err != nil {
		t.Fatal(err)
	}
	k := slices.IndexFunc(subs, func(s introspect.Subsection) bool {
		return s.First <= uint64(page) && uint64(page) < s.First+s.Pages && s.Executable()
	})
	// The test guest has all subsections behind the control area.
	at := kernelWord(t, g, v.ControlArea()+uint64(control.Size)+uint64(k)*uint64(sub.Size)+uint64(flags.Offset+f.Offset))
	const writeCopy = 5
	p := changed.page(t, at&^(pe.PageSize-1))[at%pe.PageSize:]
	word := binary.LittleEndian.Uint32(p)
	if old := uint8(word >> f.BitOffset & 31); old != subs[k].Protection {
		t.Fatalf("the protection of subsection %d at %#x is %d, not %d", k, at, old, subs[k].Protection)
	}
	binary.LittleEndian.PutUint32(p, word&^(31<<f.BitOffset)|writeCopy<<f.BitOffset)
}

// TestAForgedSectionIsNotBelieved leaves a section object as it is, with its control area,
// file object, size and layout, and has it lead to other pages: through its prototype
// entry, and through the page table of one process only.
func TestAForgedSectionIsNotBelieved(t *testing.T) {
	ctx := context.Background()
	src, _ := guest(t, ntguest.Options{Build: "10.0.19041", Seed: 14})
	planted := []byte("VMAV-PLANTED-LATER")
	e := &finder{marker: planted, name: "a"}
	opt := options{MinCoverage: DefaultMinCoverage}
	cache := NewCache()
	first := again(t, src, e, cache, opt)

	g, err := introspect.Open(ctx, src, winstruct.BuiltIn())
	if err != nil {
		t.Fatal(err)
	}
	procs, _, err := g.Processes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	victim := procs[slices.IndexFunc(procs, func(p introspect.Process) bool { return p.Name == "explorer.exe" })]
	mods, _, err := g.Modules(ctx, &victim)
	if err != nil {
		t.Fatal(err)
	}
	m := mods[slices.IndexFunc(mods, func(m introspect.Module) bool { return m.Name == "kernel32.dll" })]
	v := m.VAD()
	section := make([]introspect.Frame, (v.End+1-v.Start)/pe.PageSize)
	if _, err := g.SectionFrames(v, section); err != nil {
		t.Fatal(err)
	}
	// A page of code that is the section's own, and a frame that nobody uses.
	own := make([]introspect.Frame, len(section))
	if err := g.ImageFrames(ctx, &victim, v.Start, own, v.Start, section); err != nil {
		t.Fatal(err)
	}
	page := slices.IndexFunc(own, func(f introspect.Frame) bool { return f.Executable && f.Origin == introspect.PageResident })
	if page < 0 {
		t.Fatal("no code of kernel32.dll is resident")
	}
	rs := src.Ranges()
	free := rs[len(rs)-1].End() - pe.PageSize
	for zero := make([]byte, pe.PageSize); ; free -= pe.PageSize {
		got := make([]byte, pe.PageSize)
		if err := src.ReadPhys(got, free); err == nil && bytes.Equal(got, zero) {
			break
		}
	}
	malicious := func() *edited {
		changed := edit(src)
		copy(changed.page(t, free), changed.page(t, section[page].GPA))
		copy(changed.page(t, free)[512:], planted)
		delete(changed.pages, section[page].GPA)
		return changed
	}
	redirect := func(changed *edited, entry uint64) {
		p := changed.page(t, entry&^(pe.PageSize-1))
		le, at := binary.LittleEndian, entry%pe.PageSize
		old := le.Uint64(p[at:])
		if old&^0xfff<<12>>12 != section[page].GPA {
			t.Fatalf("the entry at %#x is %#x, not one for %#x", entry, old, section[page].GPA)
		}
		le.PutUint64(p[at:], old&^0x000ffffffffff000|free)
	}
	entry, err := g.Space(&victim).Mapping(v.Start + uint64(page)*pe.PageSize)
	if err != nil {
		t.Fatal(err)
	}
	proto := kernelWord(t, g, v.Section().First+8*uint64(page))

	one := malicious()
	redirect(one, entry.Entry)
	got := again(t, one, e, cache, opt)
	same(t, "one page table", got, again(t, one, e, NewCache(), opt))
	if f := got.Findings; len(f) != len(first.Findings)+2 ||
		!slices.ContainsFunc(f, func(f finding.Finding) bool { return f.PID == victim.PID && f.Signature == "Test.Marker" }) ||
		!slices.ContainsFunc(f, func(f finding.Finding) bool { return f.PID == victim.PID && f.Signature == finding.ModifiedCode }) {
		t.Errorf("a page of one process: findings %+v", f)
	}

	// The section object says that the page is data, which processes may write to.
	disguised := malicious()
	redirect(disguised, entry.Entry)
	disguise(t, g, v, page, disguised)
	got = again(t, disguised, e, cache, opt)
	same(t, "disguised", got, again(t, disguised, e, NewCache(), opt))
	if !slices.ContainsFunc(got.Findings, func(f finding.Finding) bool { return f.PID == victim.PID && f.Signature == "Test.Marker" }) {
		t.Errorf("code in the guise of data: findings %+v", got.Findings)
	}

	all := malicious()
	redirect(all, proto)
	redirect(all, entry.Entry)
	got = again(t, all, e, cache, opt)
	same(t, "prototype entry", got, again(t, all, e, NewCache(), opt))
	if !slices.ContainsFunc(got.Findings, func(f finding.Finding) bool { return f.PID == victim.PID && f.Signature == "Test.Marker" }) {
		t.Errorf("a page of the section: findings %+v", got.Findings)
	}
	same(t, "as it was", again(t, src, e, cache, opt), first)
}

// TestDataThatAProcessWritesIsNotAChange has processes write to their data, as they do all
// the time: the images are recognised, as a rebuild would come to the same file.
func TestDataThatAProcessWritesIsNotAChange(t *testing.T) {
	ctx := context.Background()
	src, _ := guest(t, ntguest.Options{Build: "10.0.22000", Seed: 15})
	e := &finder{marker: []byte(marker), name: "a"}
	opt := options{MinCoverage: DefaultMinCoverage}
	cache := NewCache()
	first := again(t, src, e, cache, opt)
	g, err := introspect.Open(ctx, src, winstruct.BuiltIn())
	if err != nil {
		t.Fatal(err)
	}
	procs, _, err := g.Processes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	changed := edit(src)
	mappings, err := Survey(ctx, g, procs)
	if err != nil {
		t.Fatal(err)
	}
	c := NewCopier(g, mappings, NewFiles())
	pages := 0
	for i := range procs {
		for _, m := range mappings.modules[procs[i].EPROCESS] {
			pl, err := c.find(ctx, &procs[i], &m)
			if err != nil {
				t.Fatal(err)
			}
			before := slices.Clone(pl.frames)
			c.substitute(ctx, pl)
			for k, f := range before {
				if pl.frames[k] != f {
					pages++
					p := changed.page(t, f.GPA)
					for at := range p {
						p[at] += byte(at + i)
					}
				}
			}
		}
	}
	if pages < 50 {
		t.Errorf("only %d pages of data", pages)
	}
	scans := e.scans
	got := again(t, changed, e, cache, opt)
	same(t, "with memory", got, first)
	if e.scans != scans || got.Unchanged < got.Images-1 {
		t.Errorf("%d scans, %d of %d images recognised", e.scans-scans, got.Unchanged, got.Images)
	}
	same(t, "without", again(t, changed, e, NewCache(), opt), first)
}

// TestSubstitutedPagesComeToTheSameFile rebuilds every module with and without its substituted
// pages.
func TestSubstitutedPagesComeToTheSameFile(t *testing.T) {
	ctx := context.Background()
	for _, opts := range againGuests {
		src, _ := guest(t, opts)
		g, err := introspect.Open(ctx, src, winstruct.BuiltIn())
		if err != nil {
			t.Fatal(err)
		}
		procs, _, err := g.Processes(ctx)
		if err != nil {
			t.Fatal(err)
		}
		mappings, err := Survey(ctx, g, procs)
		if err != nil {
			t.Fatal(err)
		}
		c := NewCopier(g, mappings, NewFiles())
		var rb pe.Rebuilder
		substituted := 0
		for i := range procs {
			for _, m := range mappings.modules[procs[i].EPROCESS] {
				rebuild := func(substitute bool) (data []byte, f finding.Fidelity, only []pe.Range, all []change) {
					pl, err := c.find(ctx, &procs[i], &m)
					if err != nil {
						t.Fatal(err)
					}
					if substitute {
						before := slices.Clone(pl.pages)
						if c.substitute(ctx, pl); !slices.Equal(before, pl.pages) {
							substituted++
						}
					}
					img, opt, err := c.read(ctx, pl)
					if err != nil {
						t.Fatal(err)
					}
					file, err := rb.Rebuild(img, opt)
					if err != nil {
						return nil, f, nil, nil
					}
					return bytes.Clone(file.Data), fidelity(file.Fidelity), file.Fidelity.MemoryOnly, changes(m.Base, file)
				}
				a, fa, oa, ca := rebuild(false)
				b, fb, ob, cb := rebuild(true)
				if !bytes.Equal(a, b) || fa != fb || !slices.Equal(oa, ob) || !reflect.DeepEqual(ca, cb) {
					t.Errorf("%s, trim %d: pid %d, %s: %d and %d bytes, %+v and %+v, memory only %v and %v, changes %v and %v", opts.Build, opts.Trim,
						procs[i].PID, m.Name,
						len(a), len(b), fa, fb, oa, ob, ca, cb)
				}
			}
		}
		if substituted == 0 {
			t.Errorf("%s, trim %d: nothing to substitute", opts.Build, opts.Trim)
		}
	}
}
