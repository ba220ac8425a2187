package introspect

import (
	"context"
	"slices"
	"testing"

	"vmav.dev/vmav/internal/ntguest"
)

// Entries that are not valid, and where they lead. What they say is the same with 4 and 5
// levels of tables, but for addresses that only 5 levels have.
func TestFormsOfEntriesThatAreNotValid(t *testing.T) {
	s := lay(t, ntguest.Options{Build: "10.0.26100", Seed: 3})
	g := open(t, s)
	mask := g.as.soft.invalidMask
	if mask == 0 || g.as.soft.swizzle == 0 {
		t.Fatalf("the guest inverts nothing: %+v", g.as.soft)
	}
	five := *g.as
	five.f = formatLA57
	for _, c := range []struct {
		what   string
		pte    uint64
		origin PageOrigin
		pa     uint64
	}{
		{"nothing", 0, PageAbsent, 0},
		{"transition", 0x1234<<12 ^ mask | 0x8a0, PageTransition, 0x1234<<12 | 0x10},
		{"transition, not inverted", 0x1234<<12 | 0x8b0, PageTransition, 0x1234<<12 | 0x10},
		{"demand zero", 0x80, PageDemandZero, 0},
		{"page file", 0x1234<<32 ^ mask | 0x80, pagePagedOut, 0},
		{"see the VAD", 0xffffffff00000480, PageAbsent, 0},
		{"subsection", 0xd48c12345800_0000 | 0x4f0, PageAbsent, 0},
		{"subsection, plain pointer with the transition bit", 0xffffd48c12345810, PageAbsent, 0},
		{"subsection, plain pointer with the prototype bit", 0xffffd48c12345410, PageAbsent, 0},
		{"subsection, plain pointer with both", 0xffffd48c12345c10, PageAbsent, 0},
		{"subsection, plain pointer with neither", 0xffffd48c12345048, PageAbsent, 0},
	} {
		for _, as := range []*AddressSpace{g.as, &five} {
			pa, origin, err := as.invalid(c.pte, 0x10, false)
			if err != nil || origin != c.origin || pa != c.pa {
				t.Errorf("%s: %s, %#x is of origin %d at %#x, %v; want %d at %#x", as.f.name, c.what, c.pte, origin, pa, err, c.origin, c.pa)
			}
		}
	}
	if _, origin, _ := five.invalid(0xff11d48c12345810, 0, false); origin != PageAbsent {
		t.Errorf("a pointer that only 5 levels have is of origin %d", origin)
	}
}

// The entry of a process for a page of a section can be the prototype entry's address as it
// is, or that of the subsection.
func TestPlainPointersLeadToTheSectionsPage(t *testing.T) {
	s := lay(t, ntguest.Options{Build: "10.0.26100", Seed: 3})
	g := open(t, s)
	w := s.m.Truth.Processes[len(s.m.Truth.Processes)-1]
	p := Process{PID: w.PID, Name: w.Name, EPROCESS: w.EPROCESS, DTB: w.DTB}
	vads, _, err := g.VADs(context.Background(), &p)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(vads, func(v VAD) bool { return v.Start == w.Modules[0].Base })
	if i < 0 {
		t.Fatal("the program's range is not there")
	}
	v, as := &vads[i], g.space(w.DTB)
	want, origin, err := as.prototype(v.proto, v.Start)
	if err != nil || origin != PagePrototype {
		t.Fatalf("the section's first page is of origin %d, %v", origin, err)
	}
	if pa, origin, err := as.invalid(v.proto, v.Start, true); err != nil || origin != PagePrototype || pa != want {
		t.Errorf("by the prototype entry's address: %#x of origin %d, %v; want %#x", pa, origin, err, want)
	}
	subsection := v.control + uint64(g.off.Control.Size)
	if pa, origin, err := as.invalid(subsection, v.Start, true); err != nil || origin != PageAbsent {
		t.Errorf("by the subsection's address: %#x of origin %d, %v", pa, origin, err)
	}
}

// Of a build whose forms of entries are not known, only valid entries are used: what else
// there is counts as not in memory, and the reader says so.
func TestFormsThatAreNotKnownAreNotUsed(t *testing.T) {
	s := lay(t, ntguest.Options{Build: "10.0.26100", Seed: 3, Trim: 40})
	known := open(t, s)
	for _, at := range []uint64{known.as.f.kuser + 0x260, known.kernel.Base + known.off.Sym.BuildNumber} {
		s := lay(t, ntguest.Options{Build: "10.0.26100", Seed: 3, Trim: 40})
		s.poke(t, known.as, at, opaqueSince, 4)
		g := open(t, s)
		if !slices.Contains(g.kernel.Unproven, unprovenPTEs) || slices.Contains(known.kernel.Unproven, unprovenPTEs) {
			t.Errorf("not proven: %v, and of the build before: %v", g.kernel.Unproven, known.kernel.Unproven)
		}
		origins := func(g *Guest) map[PageOrigin]int {
			count := make(map[PageOrigin]int)
			procs, problems, err := g.Processes(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			noProblems(t, problems)
			for i := range procs {
				mods, _, err := g.Modules(context.Background(), &procs[i])
				if err != nil {
					t.Fatal(err)
				}
				for j := range mods {
					mem, origins := make([]byte, mods[j].Size), make([]PageOrigin, mods[j].Size/pageSize)
					if err := g.ReadImage(context.Background(), &procs[i], mods[j].VAD(), mods[j].Base, mem, origins); err != nil {
						t.Fatal(err)
					}
					for _, o := range origins {
						count[o]++
					}
				}
			}
			return count
		}
		before, now := origins(known), origins(g)
		t.Logf("pages by origin %v, with unknown forms %v", before, now)
		if before[PageStandIn] == 0 || now[PageStandIn] != 0 || now[PageDemandZero] != 0 || now[PageAbsent] <= before[PageAbsent] {
			t.Errorf("pages by origin %v, with unknown forms %v", before, now)
		}
	}
}
