package introspect

import (
	"context"
	"slices"
	"testing"

	"vmav.dev/vmav/internal/ntguest"
)

// put writes n bytes of v at a kernel address of a guest.
func (s *machine) put(t *testing.T, g *Guest, va, v uint64, n uint32) {
	t.Helper()
	gpa, err := g.physical(va)
	if err != nil {
		t.Fatal(err)
	}
	s.Put(gpa, v, int(n))
	g.Refresh()
}

func TestPulse(t *testing.T) {
	for _, build := range []string{"6.1.7601", "6.1.7601-x86", "10.0.19041", "10.0.22000"} {
		t.Run(build, func(t *testing.T) {
			w := lay(t, ntguest.Options{Build: build, Seed: 1})
			g := open(t, w)
			ctx := context.Background()
			procs, _, err := g.Processes(ctx)
			if err != nil {
				t.Fatal(err)
			}
			p, err := g.NewPulse(w)
			if err != nil {
				t.Fatal(err)
			}
			beat := func(what string, want bool) {
				t.Helper()
				if got, err := p.Beat(); err != nil || got != want {
					t.Errorf("%s: %v, %v", what, got, err)
				}
			}
			beat("nothing happened", false)

			// The last process goes and comes: its end of the list is taken back, and put again.
			head := g.kernel.Base + g.off.Sym.ActiveProcessHead
			ptr := uint64(g.as.ptr)
			last, err := g.as.word(head + ptr)
			if err != nil {
				t.Fatal(err)
			}
			before, err := g.as.word(last + ptr)
			if err != nil {
				t.Fatal(err)
			}
			w.put(t, g, head+ptr, before, g.as.ptr)
			beat("the end is another one", true)
			beat("nothing more", false)
			w.put(t, g, head+ptr, last, g.as.ptr)
			beat("a process at the end", true)
			newest, problems, err := g.Newest(ctx, func(id Identity) bool { return id.EPROCESS == before-uint64(g.off.Process.Links) })
			if err != nil || len(problems) > 0 || len(newest) != 1 || newest[0].EPROCESS != last-uint64(g.off.Process.Links) {
				t.Fatalf("%+v, %v, %v", newest, problems, err)
			}
			// The same object, of another process.
			created := newest[0].EPROCESS + uint64(g.off.Process.CreateTime)
			w.put(t, g, created, newest[0].createTime+1, 8)
			beat("its object was used again", true)
			beat("nothing more", false)
			// The end leads nowhere, as in the middle of a change: those who enumerate will see.
			w.put(t, g, head+ptr, 0x1000, g.as.ptr)
			beat("no process at the end", true)
			if all, _, err := g.Newest(ctx, func(Identity) bool { return false }); err == nil {
				t.Errorf("%d processes of a list that is none", len(all))
			}
			w.put(t, g, head+ptr, last, g.as.ptr)
			beat("it is whole again", true)

			// Address spaces.
			var ids []Identity
			for i := range procs {
				if procs[i].EPROCESS != newest[0].EPROCESS && procs[i].Exited.IsZero() {
					ids = append(ids, procs[i].Identity())
				}
			}
			if err := p.Watch(ids); err != nil {
				t.Fatal(err)
			}
			look := func(what string, spaces, exited []Identity) {
				t.Helper()
				c, err := p.Spaces()
				if err != nil || !slices.Equal(c.Spaces, spaces) || !slices.Equal(c.Exited, exited) {
					t.Errorf("%s: %+v, %v", what, c, err)
				}
			}
			look("the first look", ids, nil)
			look("nothing happened", nil, nil)
			a, b := ids[3], ids[len(ids)-1]
			if f := g.off.Process.VadCount; f.Name != "" {
				at := a.EPROCESS + uint64(f.Offset)
				n, err := g.as.word(at)
				if err != nil {
					t.Fatal(err)
				}
				w.put(t, g, at, n+256, g.as.ptr)
				look("a has mapped something", []Identity{a}, nil)
			}
			w.put(t, g, b.EPROCESS+uint64(g.off.VAD.TreeRoot), 0, g.as.ptr)
			look("b has another root", []Identity{b}, nil)
			if err := p.Watch(ids); err != nil {
				t.Fatal(err)
			}
			look("what was seen is remembered", nil, nil)
			w.put(t, g, a.EPROCESS+uint64(g.off.Process.ExitTime), 132000000000000000, 8)
			look("a has ended", nil, []Identity{a})
			look("it ended once", nil, nil)
			if err := p.Watch(append(ids, Identity{EPROCESS: 0x1000, PID: 8})); err != nil {
				t.Errorf("a process that is none: %v", err)
			}
			look("a process that is none", nil, nil)
		})
	}
}

// A pulse is cheap: no more is read for it than its words.
func TestPulseReadsItsWordsAlone(t *testing.T) {
	m := lay(t, ntguest.Options{Build: "10.0.19041", Seed: 1})
	c := &counting{machine: m}
	g := open(t, m)
	procs, _, err := g.Processes(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	p, err := g.NewPulse(c)
	if err != nil {
		t.Fatal(err)
	}
	ids := make([]Identity, len(procs))
	for i := range procs {
		ids[i] = procs[i].Identity()
	}
	if err := p.Watch(ids); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Beat(); err != nil { // fills what is kept of the tables
		t.Fatal(err)
	}
	c.reads, c.bytes = 0, 0
	if _, err := p.Beat(); err != nil || c.reads > 2 || c.bytes > 16 {
		t.Errorf("a beat reads %d times, %d bytes; %v", c.reads, c.bytes, err)
	}
	c.reads, c.bytes = 0, 0
	if _, err := p.Spaces(); err != nil || c.bytes > 8*wordsOfSpace*len(ids) {
		t.Errorf("a look at %d spaces reads %d bytes; %v", len(ids), c.bytes, err)
	}
}

// counting counts what is read of a machine.
type counting struct {
	*machine
	reads, bytes int
}

func (c *counting) ReadPhys(p []byte, addr uint64) error {
	c.reads++
	c.bytes += len(p)
	return c.machine.ReadPhys(p, addr)
}
