package introspect

import (
	"context"
	"encoding/binary"
	"errors"
	"testing"

	"vmav.dev/vmav/internal/source"
)

// holds reports whether a guard's condition is true of a source's memory.
func holds(t *testing.T, s source.Source, gd source.Guard) bool {
	t.Helper()
	var b [8]byte
	if err := s.ReadPhys(b[:], gd.GPA); err != nil {
		t.Fatal(err)
	}
	if gd.Mask == 0 || gd.Value&^gd.Mask != 0 || gd.GPA%8 != 0 {
		t.Errorf("guard %+v is malformed", gd)
	}
	return binary.LittleEndian.Uint64(b[:])&gd.Mask == gd.Value
}

func TestGuardsHoldForTheirProcessOnly(t *testing.T) {
	forEachGuest(t, func(t *testing.T, s *machine) {
		g := open(t, s)
		if s.m.Build.X86 {
			if _, err := g.Guards(Identity{PID: 4, EPROCESS: s.m.Truth.Processes[0].EPROCESS}); !errors.Is(err, ErrActions32) {
				t.Errorf("guards in a 32-bit guest: %v", err)
			}
			return
		}
		for _, w := range s.m.Truth.Processes {
			id, st, err := g.Identify(w.EPROCESS)
			if err != nil {
				t.Fatal(err)
			}
			if id.PID != w.PID || id.DTB != w.DTB || st.Critical != w.Critical || (st.ExitTime != 0) != (w.Exited != nil) {
				t.Errorf("pid %d: %+v %+v", w.PID, id, st)
			}
			of, err := g.Guards(id)
			if err != nil {
				t.Fatal(err)
			}
			guards := of.All()
			if len(guards) == 0 || len(guards) > source.MaxGuards {
				t.Fatalf("pid %d: %d guards", w.PID, len(guards))
			}
			all := true
			for _, gd := range guards {
				all = all && holds(t, s, gd)
			}
			if want := w.Exited == nil && !w.Critical; all != want {
				t.Errorf("pid %d (%s): guards hold: %v, want %v", w.PID, w.Name, all, want)
			}
			// Another process in its place is noticed, by them and by Recheck.
			for field, off := range map[string]uint32{"pid": g.off.Process.PID, "creation time": g.off.Process.CreateTime, "DTB": g.off.Process.DTB} {
				at, err := g.as.Translate(w.EPROCESS + uint64(off))
				if err != nil {
					t.Fatal(err)
				}
				other := machineOf(s.m)
				other.Put(at, 0x1_0000_1004, 8)
				all := true
				for _, gd := range guards {
					all = all && holds(t, other, gd)
				}
				if all {
					t.Errorf("pid %d: guards hold with another %s", w.PID, field)
				}
				if _, err := g.WithSource(other).Recheck(id); field != "DTB" && !errors.Is(err, ErrOtherProcess) {
					t.Errorf("pid %d: recheck with another %s: %v", w.PID, field, err)
				}
			}
			if _, err := g.Recheck(id); err != nil {
				t.Errorf("pid %d: recheck: %v", w.PID, err)
			}
		}
	})
}

func TestMappingAgreesWithTranslation(t *testing.T) {
	forEachGuest(t, func(t *testing.T, s *machine) {
		g := open(t, s)
		procs, _, err := g.Processes(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		code, seen := 0, 0
		for i := 0; i < len(procs); i += 6 {
			p := &procs[i]
			vads, _, err := g.VADs(context.Background(), p)
			if err != nil {
				t.Fatal(err)
			}
			as := g.UserSpace(p)
			for j := range vads {
				v := &vads[j]
				for va := v.Start; va < v.Start+16*pageSize && va < v.End; va += pageSize {
					pa, origin, err := as.translate(va + 5)
					m, merr := as.Mapping(va + 5)
					if err != nil || (origin == PageResident) != (merr == nil) {
						t.Fatalf("pid %d %#x: %v %v, mapping %v", p.PID, va, origin, err, merr)
					}
					if merr != nil {
						if !errors.Is(merr, ErrNotPresent) {
							t.Fatalf("pid %d %#x: %v", p.PID, va, merr)
						}
						continue
					}
					seen++
					if m.Executable {
						code++
					}
					if m.GPA != pa || !m.User || !holds(t, s, m.Guard()) {
						t.Errorf("pid %d %#x: %+v, want %#x", p.PID, va, m, pa)
					}
				}
			}
		}
		if canForbid := !s.m.Build.X86 || s.m.Build.PAE; seen == 0 || code == 0 || code == seen == canForbid {
			t.Errorf("%d pages seen, %d of them executable", seen, code)
		}
		if m, err := g.as.Mapping(g.kernel.Base); err != nil || m.User || m.Writable {
			t.Errorf("the kernel's header: %+v, %v", m, err)
		}
	})
}

// What the section has of an image is what the process has, where it wrote nothing.
func TestFileBehindAnImage(t *testing.T) {
	forEachGuest(t, func(t *testing.T, s *machine) {
		g := open(t, s)
		procs, _, err := g.Processes(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		compared, areas := 0, make(map[uint64]string)
		for i := range procs {
			vads, _, _ := g.VADs(context.Background(), &procs[i])
			for j := range vads {
				v := &vads[j]
				if !v.Image() {
					continue
				}
				if was, ok := areas[v.ControlArea()]; v.ControlArea() == 0 || ok && was != v.Path {
					t.Fatalf("%s has control area %#x, as has %s", v.Path, v.ControlArea(), was)
				}
				areas[v.ControlArea()] = v.Path
				var a, b [64]byte
				va := v.Start + 0x1000
				if g.ReadFile(a[:], v, va) != nil || g.Space(&procs[i]).Read(b[:], va) != nil {
					continue
				}
				compared++
				if a != b {
					t.Errorf("pid %d, %s at %#x: %x in the file, %x in the process", procs[i].PID, v.Path, va, a, b)
				}
				if err := g.ReadFile(a[:], v, v.End-8); err == nil {
					t.Errorf("%s: read beyond its end", v.Path)
				}
			}
		}
		if compared == 0 {
			t.Error("nothing was compared")
		}
	})
}

func TestHandlesLeadToTheirObjects(t *testing.T) {
	forEachGuest(t, func(t *testing.T, s *machine) {
		g := open(t, s)
		procs, _, err := g.Processes(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		byEPROCESS := make(map[uint64]bool)
		for _, p := range procs {
			byEPROCESS[p.EPROCESS] = true
		}
		processes := 0
		for i := range procs {
			if !procs[i].Exited.IsZero() {
				continue
			}
			for h := uint64(4); h < 0x80; h += 4 {
				object, still, err := g.HandleObject(&procs[i], h)
				if err != nil {
					continue
				}
				if byEPROCESS[object] {
					processes++
				}
				if !holds(t, s, still) {
					t.Errorf("pid %d, handle %#x: its condition does not hold", procs[i].PID, h)
				}
				other := machineOf(s.m)
				other.Put(still.GPA, ^still.Value&still.Mask, 8)
				if holds(t, other, still) {
					t.Errorf("pid %d, handle %#x: its condition holds for another object", procs[i].PID, h)
				}
			}
			for _, h := range []uint64{0, 3, 0x3fc + 4*256, 1 << 40} {
				if object, _, err := g.HandleObject(&procs[i], h); err == nil {
					t.Errorf("pid %d: handle %#x refers to %#x", procs[i].PID, h, object)
				}
			}
		}
		if processes == 0 {
			t.Error("no handle refers to a process")
		}
	})
}

func TestUsersOfProcesses(t *testing.T) {
	forEachGuest(t, func(t *testing.T, s *machine) {
		g := open(t, s)
		procs, _, err := g.Processes(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		users := make(map[string]int)
		for i := range procs {
			got, err := g.UserSID(&procs[i])
			if err != nil {
				t.Errorf("%v", err)
				continue
			}
			for _, w := range s.m.Truth.Processes {
				if w.EPROCESS == procs[i].EPROCESS && w.SID != got {
					t.Errorf("pid %d (%s) runs as %s, want %s", w.PID, w.Name, got, w.SID)
				}
			}
			users[got]++
		}
		if users[LocalSystem] == 0 || len(users) < 4 {
			t.Errorf("users %v", users)
		}
	})
}

func TestTEBsNameTheirThreads(t *testing.T) {
	forEachGuest(t, func(t *testing.T, s *machine) {
		g := open(t, s)
		procs, _, err := g.Processes(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		seen := 0
		for i := 0; i < len(procs); i += 6 {
			p := &procs[i]
			vads, _, err := g.VADs(context.Background(), p)
			if err != nil {
				t.Fatal(err)
			}
			// Its TEBs are among its private pages.
			for j := range vads {
				for va := vads[j].Start; vads[j].Private && va < min(vads[j].End, vads[j].Start+64*pageSize); va += pageSize {
					teb, err := g.ReadTEB(p, va)
					if err != nil || teb.Self != va {
						continue
					}
					seen++
					if teb.PID != p.PID || teb.TID == 0 || teb.StackLimit >= teb.StackBase {
						t.Errorf("pid %d: %+v", p.PID, teb)
					}
				}
			}
		}
		if seen == 0 {
			t.Error("no TEB was found")
		}
	})
}
