package introspect

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"vmav.dev/vmav/internal/ntguest"
	"vmav.dev/vmav/internal/winstruct"
	"vmav.dev/vmav/internal/winstruct/winstructtest"
)

// account is all that a guest's reader says of it, without the marks of inference.
func account(t *testing.T, g *Guest) []string {
	t.Helper()
	ctx := context.Background()
	procs, problems, err := g.Processes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	noProblems(t, problems)
	var out []string
	for i := range procs {
		p := &procs[i]
		p.Flags = slices.DeleteFunc(p.Flags, func(f string) bool { return f == FlagInferred })
		out = append(out, fmt.Sprintf("%+v", *p))
		mods, problems, err := g.Modules(ctx, p)
		if err != nil {
			t.Fatal(err)
		}
		noProblems(t, problems)
		for _, m := range mods {
			out = append(out, fmt.Sprintf("%#x %#x %s %s %v %v %#x", m.Base, m.Size, m.Name, m.Path, m.Wow64, m.Flags, m.OriginalBase))
		}
	}
	drivers, problems, err := g.Drivers(ctx)
	if err != nil {
		t.Fatal(err)
	}
	noProblems(t, problems)
	for _, m := range drivers {
		out = append(out, fmt.Sprintf("%#x %#x %s %s", m.Base, m.Size, m.Name, m.Path))
	}
	return out
}

// A guest whose exact profile is not there reads the same with the offsets of a near
// build, and says so.
func TestAGuestWithoutAProfileReadsTheSame(t *testing.T) {
	for _, build := range []string{"10.0.19041", "10.0.22000", "10.0.22621", "10.0.22631", "10.0.26100", "10.0.26200"} {
		for _, shadow := range []bool{false, true} {
			if shadow && build > "10.0.22000" && build != "10.0.26100" {
				continue // as 22000, and as 26100
			}
			// The kernel for 57-bit addresses packs handles in its own way since 26100.
			s := lay(t, ntguest.Options{Build: build, Seed: 21, KVAShadow: shadow, LA57: shadow && build == "10.0.26100", Hide: "malware.exe"})
			exact := open(t, s)
			g, err := Open(context.Background(), s, winstructtest.Without{Store: winstruct.BuiltIn(), Identity: s.m.Build.Identity})
			if err != nil {
				t.Fatalf("%s: %v", build, err)
			}
			k := g.Kernel()
			// A guest whose kernel is an image of its own has only the layout of its build.
			if !strings.HasPrefix(k.Inferred, build+".") || (k.Inferred == s.m.Build.Version) != (build > "10.0.22000") {
				t.Errorf("%s: inferred from %q", build, k.Inferred)
			}
			t.Logf("%s shadow %v: inferred from %s, not used: %v", build, shadow, k.Inferred, k.Unproven)
			if k.Base != exact.kernel.Base || k.DTB != exact.kernel.DTB || k.Version != exact.kernel.Version || k.Identity != exact.kernel.Identity {
				t.Errorf("%s: kernel %+v, want %+v", build, k, exact.kernel)
			}
			for _, sym := range []struct {
				name      string
				got, want uint64
			}{
				{"PsActiveProcessHead", g.off.Sym.ActiveProcessHead, exact.off.Sym.ActiveProcessHead},
				{"PspCidTable", g.off.Sym.CidTable, exact.off.Sym.CidTable},
				{"PsLoadedModuleList", g.off.Sym.LoadedModuleList, exact.off.Sym.LoadedModuleList},
			} {
				if sym.got != sym.want {
					t.Errorf("%s: %s found at %#x, it is at %#x", build, sym.name, sym.got, sym.want)
				}
			}
			procs, _, err := g.Processes(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range procs {
				if !slices.Contains(p.Flags, FlagInferred) {
					t.Errorf("%s: pid %d is not marked as inferred", build, p.PID)
				}
			}
			a, b := account(t, g), account(t, exact)
			if !slices.Equal(a, b) {
				for i := range min(len(a), len(b)) {
					if a[i] != b[i] {
						t.Errorf("%s:\n got %s\nwant %s", build, a[i], b[i])
					}
				}
				t.Errorf("%s: %d lines, want %d", build, len(a), len(b))
			}
		}
	}
}

// Pages that Windows trimmed say nothing for an offset and nothing against it. How the
// build writes their entries is not known: none is believed.
func TestInferenceWithTrimmedPages(t *testing.T) {
	for _, build := range []string{"10.0.19041", "10.0.22000"} {
		s := lay(t, ntguest.Options{Build: build, Seed: 4, Absent: true})
		g, err := Open(context.Background(), s, winstructtest.Without{Store: winstruct.BuiltIn(), Identity: s.m.Build.Identity})
		if err != nil {
			t.Fatalf("%s: %v", build, err)
		}
		procs, problems, err := g.Processes(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		noProblems(t, problems)
		if len(procs) != len(s.m.Truth.Processes) {
			t.Errorf("%s: %d processes, want %d", build, len(procs), len(s.m.Truth.Processes))
		}
		trimmed := 0
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
					if o == PageTransition {
						t.Fatalf("%s: a transition entry of unknown form is believed", build)
					}
					if o == PageAbsent {
						trimmed++
					}
				}
			}
		}
		if trimmed == 0 {
			t.Errorf("%s: no page is trimmed: nothing was tested", build)
		}
	}
}

// Where no known layout fits, the missing profile is named and why none fits.
func TestOffsetsThatDoNotFitAreNotUsed(t *testing.T) {
	s := lay(t, ntguest.Options{Build: "6.1.7601", Seed: 21})
	_, err := Open(context.Background(), s, winstructtest.Without{Store: winstruct.BuiltIn(), Identity: s.m.Build.Identity})
	var missing *winstruct.MissingError
	if !errors.As(err, &missing) || missing.Identity != s.m.Build.Identity || !errors.Is(err, ErrNoNeighbour) {
		t.Fatalf("Open = %v", err)
	}
	t.Log(err)
}

// Of a build's offsets each is changed in turn: every one that is wrong is noticed,
// whichever it is.
func TestEveryWrongOffsetIsNoticed(t *testing.T) {
	for _, o := range []ntguest.Options{{Build: "10.0.19041", Seed: 21, KVAShadow: true}, {Build: "10.0.26100", Seed: 21, KVAShadow: true},
		{Build: "6.1.7601-x86", Seed: 21},
		{Build: "10.0.19041-x86", Seed: 21}} {
		t.Run(o.Build, func(t *testing.T) { everyWrongOffset(t, lay(t, o)) })
	}
}

func everyWrongOffset(t *testing.T, s *machine) {
	g, p := open(t, s), s.m.Profile()
	word := int(p.PointerSize())
	system := s.m.Truth.Processes[0].EPROCESS
	run := func(off *Offsets) (*prover, error) {
		trial := &Guest{src: g.src, t: g.t, as: g.as, kernel: g.kernel, off: off}
		pr := &prover{ctx: context.Background(), g: trial, system: system}
		return pr, pr.prove()
	}
	sound, err := compile(p)
	if err != nil {
		t.Fatal(err)
	}
	if pr, err := run(sound); err != nil {
		t.Fatalf("the right offsets are not proven: %v, %v", err, pr.unproven)
	}
	// Not read by introspection at all, or sizes that only bound a copy, or what is read
	// only to prove another by.
	unread := map[string]bool{"PEB.SessionID": true, "PEB.ImageBase": true, "Params.ImagePath": true, "HandleBits": true, // of which the bits count
		"Process.ObjectTable": true, "Process.SectionObject": true, "Process.ImageFile": true, "Process.VadRoot": true,
		"Process.Size": true, "Process.Wow64HasObject": true, "PEB.Size": true, "Entry.Size": true, "Driver.Size": true, "VAD.Size": true,
		"VAD.ShortSize":   true,
		"HandleEntrySize": true, "InvalidPteMask": true, "SwizzleBit": true, "Process.ThreadList": true,
	}
	var names []string
	var walk func(v reflect.Value, prefix string)
	tried := 0
	check := func(name string, at func(*Offsets) reflect.Value, change func(*Offsets) bool) {
		off, err := compile(p)
		if err != nil {
			t.Fatal(err)
		}
		if !change(off) {
			return
		}
		tried++
		wrong := at(off).Interface()
		off.Sym.CidTable = 0
		if _, err := run(off); err != nil || at(off).Interface() != wrong {
			return // the offsets are refused, or this one is not used
		}
		if strings.HasPrefix(name, "Handle") && off.Sym.CidTable == 0 {
			return // the table that it is for is not found, and not used
		}
		names = append(names, name)
	}
	walk = func(v reflect.Value, prefix string) {
		for i := range v.NumField() {
			f, name := v.Type().Field(i), prefix+v.Type().Field(i).Name
			if f.Name == "Sym" || unread[name] {
				continue
			}
			at := func(o *Offsets) reflect.Value {
				w := reflect.ValueOf(o).Elem()
				for _, part := range strings.Split(name, ".") {
					w = w.FieldByName(part)
				}
				return w
			}
			switch {
			case f.Type == reflect.TypeOf(winstruct.Field{}):
				for _, delta := range []int{-word, word, 4} {
					check(fmt.Sprintf("%s%+d", name, delta), at, func(o *Offsets) bool {
						fd := at(o).Addr().Interface().(*winstruct.Field)
						if fd.Name == "" || int(fd.Offset)+delta < 0 {
							return false
						}
						fd.Offset = uint32(int(fd.Offset) + delta)
						return true
					})
				}
			case f.Type.Kind() == reflect.Struct:
				walk(v.Field(i), name+".")
			case f.Type.Kind() == reflect.Uint32:
				for _, delta := range []int{-2 * word, -word, word, 2 * word} {
					check(fmt.Sprintf("%s%+d", name, delta), at, func(o *Offsets) bool {
						w := at(o)
						if uint32(w.Uint()) == winstruct.Missing || int(w.Uint())+delta < 0 {
							return false
						}
						w.SetUint(uint64(int(w.Uint()) + delta))
						return true
					})
				}
			}
		}
	}
	walk(reflect.ValueOf(Offsets{}), "")
	if tried < 150 {
		t.Errorf("%d wrong offsets were tried", tried)
	}
	t.Logf("%d wrong offsets tried", tried)
	for _, n := range names {
		t.Errorf("%s: a wrong offset is taken for proven", n)
	}
}

// remembered keeps what it read, for fuzzing.
type remembered struct {
	winstructtest.Without
	list []winstruct.Entry
	open map[string]*winstruct.Profile
}

func (r *remembered) Near(string) []winstruct.Entry { return r.list }

func (r *remembered) Open(e winstruct.Entry) (*winstruct.Profile, error) {
	if p := r.open[e.Name]; p != nil {
		return p, nil
	}
	p, err := r.Without.Store.Open(e)
	r.open[e.Name] = p
	return p, err
}

// FuzzInfer changes words of a guest that has no profile: inference ends, and never
// panics.
func FuzzInfer(f *testing.F) {
	s := lay(f, ntguest.Options{Build: "10.0.19041", Seed: 1, MemoryMiB: 256})
	g := open(f, s)
	var places []uint64
	add := func(as *AddressSpace, va, size uint64) {
		for off := uint64(0); off < size; off += 8 {
			if pa, err := as.Translate(va + off); err == nil {
				places = append(places, pa&^7)
			}
		}
	}
	for i, p := range s.m.Truth.Processes {
		if i > 0 && i%9 != 0 {
			continue
		}
		add(g.as, p.EPROCESS, uint64(g.off.Process.Size))
		if p.PEB != 0 {
			add(g.space(p.DTB), p.PEB, 0x100)
		}
	}
	add(g.as, g.kernel.Base, pageSize)
	ex, err := readExports(g.as, g.kernel.Base)
	if err != nil {
		f.Fatal(err)
	}
	add(g.as, g.kernel.Base+uint64(ex.nameRVAs)&^7, 0x200)
	near := &remembered{Without: winstructtest.Without{Store: winstruct.BuiltIn(), Identity: s.m.Build.Identity}, open: map[string]*winstruct.Profile{}}
	near.list = near.Without.Near("10.0.19041")[:6]
	seed := make([]byte, 20)
	binary.LittleEndian.PutUint16(seed, 3)
	f.Add(seed)
	f.Fuzz(func(t *testing.T, data []byte) {
		p := s.patched(data, places, 16, address)
		g, err := Open(context.Background(), p, near)
		if (g == nil) == (err == nil) {
			t.Fatalf("Open = %v, %v", g, err)
		}
	})
}

// Of Server 23H2 (25398) no layout is known but single values, all of which are those of 22631.
// A guest of that build is read with the layout of 22631, though those of 26100 are nearer.
func TestABuildBetweenLayouts(t *testing.T) {
	s := lay(t, ntguest.Options{Build: "10.0.22631", Seed: 21})
	exact := open(t, s)
	for _, at := range []uint64{exact.as.f.kuser + 0x260, exact.kernel.Base + exact.off.Sym.BuildNumber} {
		s.poke(t, exact.as, at, 25398, 4)
	}
	exact = open(t, s)
	g, err := Open(context.Background(), s, winstructtest.Without{Store: winstruct.BuiltIn(), Identity: s.m.Build.Identity})
	if err != nil {
		t.Fatal(err)
	}
	if k := g.Kernel(); k.Inferred != "10.0.22631.2428" || k.Version != "10.0.25398" {
		t.Errorf("Windows %s is inferred from %s", k.Version, k.Inferred)
	}
	if a, b := account(t, g), account(t, exact); !slices.Equal(a, b) {
		t.Errorf("%d lines, want %d, or not the same", len(a), len(b))
	}
}
