package introspect

import (
	"context"
	"errors"
	"slices"
	"testing"

	"vmav.dev/vmav/internal/ntguest"
	"vmav.dev/vmav/internal/winstruct"
	"vmav.dev/vmav/internal/winstruct/winstructtest"
)

// poke changes a word of kernel or user memory.
func (s *machine) poke(t *testing.T, as *AddressSpace, va, v uint64, size int) {
	t.Helper()
	pa, err := as.Translate(va)
	if err != nil {
		t.Fatal(err)
	}
	s.Put(pa, v, size)
}

// unmap takes a page out of an address space.
func (s *machine) unmap(t *testing.T, as *AddressSpace, va uint64) {
	t.Helper()
	table, _, ok, err := as.walkTo(va, pageShift+as.f.step)
	if err != nil || !ok || table&pteValid == 0 {
		t.Fatalf("no page table for %#x: %v", va, err)
	}
	s.Put(as.f.entryAt(table&pfnMask, va, pageShift), 0, int(as.f.pte))
}

// byPID lists processes and the problems of each.
func byPID(t *testing.T, g *Guest) (map[uint64]Process, map[uint64][]Problem) {
	t.Helper()
	procs, found, err := g.Processes(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	out, problems := make(map[uint64]Process), make(map[uint64][]Problem)
	for _, p := range procs {
		out[p.PID] = p
	}
	for _, p := range found {
		problems[p.Process.PID] = append(problems[p.Process.PID], p)
	}
	return out, problems
}

// A build that has no _MM_SESSION_SPACE: the place of the id in the session's object is used
// where the guest bears it out, and then a process's own record counts for nothing. Where it
// does not, that is named and the process's record is used. A session of which neither is
// known is a problem, and not "none".
func TestSessionsWithoutTheirStructure(t *testing.T) {
	for _, inferred := range []bool{false, true} {
		s := lay(t, ntguest.Options{Build: "10.0.26100", Seed: 3})
		find := func() *Guest {
			t.Helper()
			if !inferred {
				return open(t, s)
			}
			g, err := Open(context.Background(), s, winstructtest.Without{Store: winstruct.BuiltIn(), Identity: s.m.Build.Identity})
			if err != nil {
				t.Fatal(err)
			}
			return g
		}
		g := find()
		if g.off.SessionID != opaqueSessionID || slices.Contains(g.kernel.Unproven, unprovenSession) {
			t.Errorf("the session's id at %#x, not proven: %v", g.off.SessionID, g.kernel.Unproven)
		}
		objects := make(map[uint64]bool)
		var user Process
		for _, w := range s.m.Truth.Processes {
			at, err := g.as.word(w.EPROCESS + uint64(g.off.Process.Session))
			if err != nil {
				t.Fatal(err)
			}
			if objects[at] = true; w.Name == "notepad.exe" {
				user = Process{PID: w.PID, DTB: w.DTB, PEB: w.PEB}
			}
		}
		delete(objects, 0)
		peb := user.PEB
		s.poke(t, g.space(user.DTB), peb+0x2c0, 7, 4) // _PEB.SessionId of 26100
		if got, _ := byPID(t, find()); got[user.PID].Session != 1 {
			t.Errorf("inferred %v: a process that says it is in session 7 is in %d, want 1", inferred, got[user.PID].Session)
		}
		s.poke(t, g.space(user.DTB), peb+0x2c0, 1, 4)

		for at := range objects { // the object has another form
			s.poke(t, g.as, at+opaqueSessionID, 0, 4)
		}
		g = find()
		got, problems := byPID(t, g)
		if inferred {
			// Offsets that are not the build's own are not used without a proof.
			if !slices.Contains(g.kernel.Unproven, "_EPROCESS.Session") || got[user.PID].Session != -1 {
				t.Errorf("session %d, not proven: %v", got[user.PID].Session, g.kernel.Unproven)
			}
			continue
		}
		if !slices.Contains(g.kernel.Unproven, unprovenSession) {
			t.Errorf("not proven: %v, want %s", g.kernel.Unproven, unprovenSession)
		}
		for _, w := range s.m.Truth.Processes {
			p := got[w.PID]
			if w.Exited != nil {
				if w.Session >= 0 && (len(problems[w.PID]) != 1 || !errors.Is(problems[w.PID][0].Err, errSessionUnknown)) {
					t.Errorf("pid %d has exited: session %d, problems %v", w.PID, p.Session, problems[w.PID])
				}
			} else if int(p.Session) != w.Session || len(problems[w.PID]) != 0 {
				t.Errorf("pid %d: session %d, want %d; problems %v", w.PID, p.Session, w.Session, problems[w.PID])
			}
		}
		s.unmap(t, g.space(user.DTB), user.PEB)
		got, problems = byPID(t, find())
		p := got[user.PID]
		if p.Session != -1 || !slices.Contains(p.Flags, FlagPartial) || len(problems[user.PID]) != 1 ||
			!errors.Is(problems[user.PID][0].Err, errSessionUnknown) {
			t.Errorf("without its PEB: session %d, flags %v, problems %v", p.Session, p.Flags, problems[user.PID])
		}
	}
}
