package introspect

import (
	"bytes"
	"context"
	"slices"
	"testing"

	"vmav.dev/vmav/internal/ntguest"
)

// eachImage opens a laid-out guest with trimmed pages and calls f for every image of
// every process, with what the layout knows of it.
func eachImage(t *testing.T, opts ntguest.Options, f func(g *Guest, p *Process, m *Module, h *ntguest.Held)) {
	t.Helper()
	s := lay(t, opts)
	g := open(t, s)
	procs, problems, err := g.Processes(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	noProblems(t, problems)
	images := 0
	for i := range procs {
		mods, problems, err := g.Modules(context.Background(), &procs[i])
		if err != nil {
			t.Fatal(err)
		}
		noProblems(t, problems)
		for j := range mods {
			h, ok := s.m.Held(procs[i].PID, mods[j].Base)
			if !ok || mods[j].VAD() == nil {
				t.Fatalf("pid %d: the layout knows nothing of %s", procs[i].PID, mods[j].Name)
			}
			images++
			f(g, &procs[i], &mods[j], &h)
		}
	}
	if images < 100 {
		t.Errorf("only %d images", images)
	}
}

// builds are those that the section tests run on.
var sectionBuilds = []string{"6.1.7601", "10.0.19041", "10.0.22000", "10.0.26100"}

// TestImagePages holds the origin of every page against the layout: the process's own
// copies are told from the section's pages, and what the section holds is found where
// a process has changed it or lost it.
func TestImagePages(t *testing.T) {
	for i, build := range sectionBuilds {
		count := make(map[PageOrigin]int)
		eachImage(t, ntguest.Options{Build: build, Seed: uint64(i), Trim: 40}, func(g *Guest, p *Process, m *Module, h *ntguest.Held) {
			mem, origins := make([]byte, m.Size), make([]PageOrigin, m.Size/pageSize)
			if err := g.ReadImage(context.Background(), p, m.VAD(), m.Base, mem, origins); err != nil {
				t.Fatal(err)
			}
			var private []int
			for n, o := range origins {
				count[o]++
				good := false
				switch {
				case h.Own[n]:
					good = o == PagePrivate
					private = append(private, n)
				case h.Shared[n] && h.Written[n]:
					good = o == PageStandIn
				case h.Shared[n]:
					good = o == PageResident || o == PageTransition || o == PagePrototype
				default:
					good = o == PageAbsent
				}
				if !good {
					t.Errorf("%s: pid %d, page %d of %s: origin %d; shared %v, written %v, own %v", build, p.PID, n, m.Name, o, h.Shared[n], h.Written[n],
						h.Own[n])
				}
			}
			section := make([]Frame, len(origins))
			if n, err := g.SectionFrames(m.VAD(), section); err != nil || n != len(section) {
				t.Fatalf("%s: %d of %d pages of the section: %v", m.Name, n, len(section), err)
			}
			for _, n := range private {
				if (section[n].Origin == PagePrototype) != h.Shared[n] {
					t.Errorf("%s: pid %d, page %d of %s: original's origin %d, shared %v", build, p.PID, n, m.Name, section[n].Origin, h.Shared[n])
				}
			}
		})
		for _, o := range []PageOrigin{PageAbsent, PageResident, PagePrototype, PagePrivate, PageStandIn} {
			if count[o] == 0 {
				t.Errorf("%s: no page of origin %d: %v", build, o, count)
			}
		}
		t.Logf("%s: pages by origin %v", build, count)
	}
}

// TestSubsections holds the section object's account of the layout against the file's
// own section table.
func TestSubsections(t *testing.T) {
	for i, build := range sectionBuilds {
		eachImage(t, ntguest.Options{Build: build, Seed: uint64(i)}, func(g *Guest, p *Process, m *Module, h *ntguest.Held) {
			subs, err := g.Subsections(m.VAD())
			if err != nil {
				t.Fatal(err)
			}
			nt := int(h.File[0x3c]) | int(h.File[0x3d])<<8
			n := int(h.File[nt+6])
			if len(subs) != n+1 {
				t.Fatalf("%s: %d subsections for %d sections", m.Name, len(subs), n)
			}
			table := nt + 24 + (int(h.File[nt+20]) | int(h.File[nt+21])<<8)
			u32 := func(at int) uint64 {
				return uint64(h.File[at]) | uint64(h.File[at+1])<<8 | uint64(h.File[at+2])<<16 | uint64(h.File[at+3])<<24
			}
			for j, s := range subs[1:] {
				e := table + 40*j
				if s.First*pageSize != u32(e+12) || s.Size != u32(e+16) && u32(e+20) != 0 || s.Offset != u32(e+20)&^511 ||
					s.Writable() != (u32(e+36)&0x80000000 != 0) {
					t.Errorf("%s: subsection %+v, section at %#x with %#x bytes from %#x", m.Name, s, u32(e+12), u32(e+16), u32(e+20))
				}
			}
		})
	}
}

// TestCachedFile holds what is found of files in their on-disk form against the files.
func TestCachedFile(t *testing.T) {
	for i, build := range sectionBuilds {
		files, whole, pages, without := 0, 0, 0, 0
		seen := make(map[uint64]bool)
		eachImage(t, ntguest.Options{Build: build, Seed: uint64(i), Trim: 30, FileCache: true}, func(g *Guest, p *Process, m *Module, h *ntguest.Held) {
			file := m.VAD().FileObject()
			if seen[file] {
				return
			}
			seen[file] = true
			size, frames, err := g.FileFrames(context.Background(), file, 1<<30)
			if err != nil {
				t.Fatalf("%s: %v", m.Name, err)
			}
			if len(frames) == 0 {
				if without++; slices.Contains(h.Cached, true) {
					t.Errorf("%s: nothing found of a cached file", m.Name)
				}
				return
			}
			data := make([]byte, len(frames)*pageSize)
			if err := g.ReadFrames(context.Background(), data, frames); err != nil {
				t.Fatal(err)
			}
			files++
			if size != uint64(len(h.File)) {
				t.Errorf("%s: size %d, is %d", m.Name, size, len(h.File))
			}
			if slices.Contains(h.Cached[len(frames):], true) {
				t.Errorf("%s: %d pages found, more are cached", m.Name, len(frames))
			}
			for n, f := range frames {
				if f.InMemory() != h.Cached[n] {
					t.Errorf("%s: page %d of the file: origin %d, cached %v", m.Name, n, f.Origin, h.Cached[n])
				}
				from, to := n*pageSize, min((n+1)*pageSize, len(h.File))
				if f.InMemory() && !bytes.Equal(data[from:to], h.File[from:to]) {
					t.Errorf("%s: page %d of the file differs", m.Name, n)
				}
				if pages++; f.InMemory() {
					whole++
				}
			}
		})
		if files < 15 || without == 0 || whole*2 < pages {
			t.Errorf("%s: %d files with %d of %d pages, %d files without", build, files, whole, pages, without)
		}
	}
}
