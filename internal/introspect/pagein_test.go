package introspect

import (
	"context"
	"testing"

	"vmav.dev/vmav/internal/ntguest"
	"vmav.dev/vmav/internal/source"
)

func TestSectionAlone(t *testing.T) {
	for _, tt := range []struct {
		pte  uint64
		want bool
	}{
		{0, true},
		{0xa00012345678<<16 | ptePrototype, true},
		{0xffffffff0000<<16 | 3<<5 | ptePrototype, false}, // the range's descriptor knows the entry, this one a right
		{0xffffffff<<32 | 3<<5 | ptePrototype, false},
		{0x1234<<12 | 4<<5 | pteTransition, false},
		{0x1234<<12 | 4<<5 | pteTransition | ptePrototype, false},
		{0x77<<32 | 4<<5, false}, // in a page file
		{4 << 5, false},          // demand-zero, of its own
	} {
		if got := sectionAlone(tt.pte); got != tt.want {
			t.Errorf("entry %#x: %v", tt.pte, got)
		}
	}
}

// A page is offered only where the process has nothing of its own of it.
func TestPageInGuardsAreForSectionPagesOnly(t *testing.T) {
	for _, opts := range []ntguest.Options{{Build: "10.0.19041", Seed: 6, Absent: true}, {Build: "10.0.19041", Seed: 7, Trim: 40},
		{Build: "6.1.7601", Seed: 8, Trim: 40}} {
		m, err := ntguest.Lay(opts)
		if err != nil {
			t.Fatal(err)
		}
		s := machineOf(m)
		g := open(t, s)
		procs, _, err := g.Processes(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		offered, kept := 0, 0
		for i := range procs {
			p := &procs[i]
			if p.PEB == 0 || !p.Exited.IsZero() {
				continue
			}
			id, st, err := g.Identify(p.EPROCESS)
			if err != nil {
				t.Fatal(err)
			}
			vads, _, err := g.VADs(context.Background(), p)
			if err != nil {
				t.Fatal(err)
			}
			for j := range vads {
				v := &vads[j]
				if !v.Image() {
					continue
				}
				n := (v.End + 1 - v.Start) / pageSize
				mem, from := make([]byte, n*pageSize), make([]PageOrigin, n)
				if err := g.ReadImage(context.Background(), p, v, v.Start, mem, from); err != nil {
					t.Fatal(err)
				}
				for k, origin := range from {
					va := v.Start + uint64(k)*pageSize
					guards, in, err := g.PageInGuards(id, va)
					switch {
					case guards == nil:
						if kept++; origin == PageResident && !in {
							t.Errorf("pid %d, %#x is present: %v", p.PID, va, err)
						}
						continue
					case origin != PageAbsent && origin != PagePrototype:
						t.Errorf("pid %d, %#x: its page of origin %d may be asked for", p.PID, va, origin)
					}
					offered++
					all := len(guards) <= source.MaxGuards
					for _, gd := range guards {
						all = all && holds(t, s, gd)
					}
					if all != !st.Critical {
						t.Errorf("pid %d (%s), %#x: guards hold: %v", p.PID, p.Name, va, all)
					}
				}
			}
		}
		if offered < 100 || kept < 100 {
			t.Errorf("%+v: %d pages may be asked for, %d not", opts, offered, kept)
		}
	}
}
