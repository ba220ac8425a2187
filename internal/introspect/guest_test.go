package introspect

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"vmav.dev/vmav/internal/ntguest"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/source/sourcetest"
	"vmav.dev/vmav/internal/winstruct"
	"vmav.dev/vmav/internal/winstruct/winstructtest"
)

// machine is a laid-out test guest and its memory as a source.
type machine struct {
	*sourcetest.Guest
	m *ntguest.Machine
}

func machineOf(m *ntguest.Machine) *machine { return &machine{sourcetest.New(m, m.Memory), m} }

// laid are the machines that were laid out already: nothing here writes to one.
var laid = make(map[ntguest.Options]*ntguest.Machine)

func lay(t testing.TB, opts ntguest.Options) *machine {
	t.Helper()
	m := laid[opts]
	if m == nil {
		var err error
		if m, err = ntguest.Lay(opts); err != nil {
			t.Fatal(err)
		}
		laid[opts] = m
	}
	return machineOf(m)
}

func open(t testing.TB, s *machine) *Guest {
	t.Helper()
	g, err := Open(context.Background(), s, winstructtest.With{Store: winstruct.BuiltIn(), Profile: s.m.Profile()})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// forEachGuest runs a test on every form of the test guest.
func forEachGuest(t *testing.T, f func(t *testing.T, s *machine)) {
	builds, err := ntguest.Builds()
	if err != nil {
		t.Fatal(err)
	}
	for i, b := range builds {
		for _, shadow := range []bool{false, true} {
			if shadow && b.Major < 10 {
				continue
			}
			for _, la57 := range []bool{false, true} {
				if la57 && b.Major < 10 {
					continue
				}
				// Builds alike: one form each, and of 26100 the one that has both.
				if b.Number > 22000 && (shadow != la57 || shadow && b.Name != "10.0.26100") {
					continue
				}
				t.Run(fmt.Sprintf("%s/shadow=%v/la57=%v", b.Name, shadow, la57), func(t *testing.T) {
					f(t, lay(t, ntguest.Options{Build: b.Name, Seed: uint64(i) + 7, KVAShadow: shadow, LA57: la57, Hide: "malware.exe"}))
				})
			}
		}
	}
	forEach32(t, f)
}

// forEach32 runs a test on every 32-bit form of the test guest.
func forEach32(t *testing.T, f func(t *testing.T, s *machine)) {
	builds, err := ntguest.Builds32()
	if err != nil {
		t.Fatal(err)
	}
	for i, b := range builds {
		for _, form := range []struct{ threeGB, shadow bool }{{false, false}, {true, false}, {false, true}} {
			if form.shadow && b.Name == "6.1.7601-x86-pae" { // as 10.0.19041-x86
				continue
			}
			t.Run(fmt.Sprintf("%s/3gb=%v/shadow=%v", b.Name, form.threeGB, form.shadow), func(t *testing.T) {
				f(t, lay(t, ntguest.Options{Build: b.Name, Seed: uint64(i) + 7, ThreeGB: form.threeGB, KVAShadow: form.shadow, Hide: "malware.exe"}))
			})
		}
	}
}

func noProblems(t *testing.T, problems []Problem) {
	t.Helper()
	for _, p := range problems {
		t.Errorf("problem: %v", p)
	}
}

func TestKernelIsWhatTheTruthSays(t *testing.T) {
	forEachGuest(t, func(t *testing.T, s *machine) {
		want := s.m.Truth.Kernel
		k := open(t, s).Kernel()
		if k.Base != want.Base || k.DTB != want.DTB || uint64(k.Size) != want.Size || k.Identity.GUID != want.GUID || k.Identity.Age != want.Age {
			t.Errorf("got %+v, want %+v", k, want)
		}
		if paging := map[int]string{2: "x86", 3: "x86-pae", 4: "x64", 5: "x64-la57"}[want.Levels]; k.Paging != paging {
			t.Errorf("paging %q, want %q", k.Paging, paging)
		}
		if b := s.m.Build; k.Version != fmt.Sprintf("%d.%d.%d", b.Major, b.Minor, b.Number) {
			t.Errorf("version %q, want that of %q", k.Version, b.Name)
		}
	})
}

func TestTimeIsThatOfTheGuest(t *testing.T) {
	forEachGuest(t, func(t *testing.T, s *machine) {
		now, err := open(t, s).Time()
		if err != nil {
			t.Fatal(err)
		}
		var newest time.Time
		for _, p := range s.m.Truth.Processes {
			if p.Created.After(newest) {
				newest = p.Created
			}
		}
		if now.Before(newest) || now.Sub(newest) > 24*time.Hour {
			t.Errorf("it is %v, and the newest process is of %v", now, newest)
		}
	})
}

func TestProcessesAreWhatTheTruthSays(t *testing.T) {
	forEachGuest(t, func(t *testing.T, s *machine) {
		got, problems, err := open(t, s).Processes(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		noProblems(t, problems)
		want := s.m.Truth.Processes
		if len(got) != len(want) {
			t.Errorf("%d processes, want %d", len(got), len(want))
		}
		byPID := make(map[uint64]Process)
		for _, p := range got {
			byPID[p.PID] = p
		}
		for _, w := range want {
			p, ok := byPID[w.PID]
			if !ok {
				t.Errorf("pid %d (%s) is missing", w.PID, w.Name)
				continue
			}
			if s.m.Build.X86 {
				w.UserDTB = 0 // no structure has it
			}
			if p.Name != w.Name || p.PPID != w.PPID || p.Path != w.Path || p.CommandLine != w.Command || int(p.Session) != w.Session ||
				p.EPROCESS != w.EPROCESS || p.DTB != w.DTB || p.UserDTB != w.UserDTB || p.PEB != w.PEB || p.PEB32 != w.PEB32 ||
				int(p.Threads) != w.Threads || p.Wow64 != w.Wow64 || !p.Created.Equal(w.Created) {
				t.Errorf("pid %d:\n got %+v\nwant %+v", w.PID, p, w)
			}
			if (w.Exited != nil) != slices.Contains(p.Flags, FlagExited) || w.Exited != nil && !p.Exited.Equal(*w.Exited) {
				t.Errorf("pid %d: exited %v flags %v, want %v", w.PID, p.Exited, p.Flags, w.Exited)
			}
			if w.Critical != slices.Contains(p.Flags, FlagCritical) {
				t.Errorf("pid %d: flags %v, critical should be %v", w.PID, p.Flags, w.Critical)
			}
			hidden := slices.Contains(s.m.Truth.Hidden, w.PID)
			if hidden != slices.Contains(p.Flags, FlagHidden) || hidden == slices.Contains(p.Sources, SourceList) || !slices.Contains(p.Sources, SourceCID) {
				t.Errorf("pid %d: flags %v sources %v, hidden should be %v", w.PID, p.Flags, p.Sources, hidden)
			}
		}
	})
}

func TestModulesAndDriversAreWhatTheTruthSays(t *testing.T) {
	forEachGuest(t, func(t *testing.T, s *machine) {
		g := open(t, s)
		procs, _, err := g.Processes(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		line := func(name, path string, base, size uint64, wow64 bool) string {
			return fmt.Sprintf("%#x %#x %s %s %v", base, size, name, path, wow64)
		}
		for i := range procs {
			got, problems, err := g.Modules(context.Background(), &procs[i])
			if err != nil {
				t.Fatal(err)
			}
			noProblems(t, problems)
			var a, b []string
			for _, m := range got {
				a = append(a, line(m.Name, m.Path, m.Base, m.Size, m.Wow64))
				if len(m.Flags) != 0 {
					t.Errorf("pid %d: %s has flags %v", procs[i].PID, m.Name, m.Flags)
				}
			}
			for _, w := range s.m.Truth.Processes {
				if w.PID == procs[i].PID {
					for _, m := range w.Modules {
						b = append(b, line(m.Name, m.Path, m.Base, m.Size, m.Wow64))
					}
				}
			}
			slices.Sort(a)
			slices.Sort(b)
			if !slices.Equal(a, b) {
				t.Errorf("pid %d (%s):\n got %s\nwant %s", procs[i].PID, procs[i].Name, strings.Join(a, "\n     "), strings.Join(b, "\n     "))
			}
		}
		drivers, problems, err := g.Drivers(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		noProblems(t, problems)
		var a, b []string
		for _, m := range drivers {
			a = append(a, line(m.Name, m.Path, m.Base, m.Size, false))
		}
		for _, m := range s.m.Truth.Drivers {
			b = append(b, line(m.Name, m.Path, m.Base, m.Size, false))
		}
		if !slices.Equal(a, b) {
			t.Errorf("drivers:\n got %s\nwant %s", strings.Join(a, "\n     "), strings.Join(b, "\n     "))
		}
	})
}

func TestAddressRangesAreWhatTheTruthSays(t *testing.T) {
	forEachGuest(t, func(t *testing.T, s *machine) {
		g := open(t, s)
		procs, _, err := g.Processes(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		for i := range procs {
			got, problems, err := g.VADs(context.Background(), &procs[i])
			if err != nil {
				t.Fatal(err)
			}
			noProblems(t, problems)
			var a, b []string
			for _, v := range got {
				a = append(a, fmt.Sprintf("%#x-%#x %v %s", v.Start, v.End, v.Private, v.Path))
			}
			for _, w := range s.m.Truth.Processes {
				if w.PID == procs[i].PID {
					for _, v := range w.VADs {
						b = append(b, fmt.Sprintf("%#x-%#x %v %s", v.Start, v.End, v.Private, v.Path))
					}
				}
			}
			if !slices.Equal(a, b) {
				t.Errorf("pid %d:\n got %q\nwant %q", procs[i].PID, a, b)
			}
		}
	})
}

func TestKernelIsFoundFromAnyAddressSpace(t *testing.T) {
	for i := range 4 {
		shadow, la57 := i&1 != 0, i&2 != 0
		s := lay(t, ntguest.Options{Build: "10.0.19041", Seed: 3, KVAShadow: shadow, LA57: la57})
		p := s.m.Truth.Processes[len(s.m.Truth.Processes)-1]
		cr3 := p.DTB
		if shadow {
			cr3 = p.UserDTB | 1
		}
		cr4 := uint64(0x20)
		if la57 {
			cr4 |= 1 << 12
		}
		s.Regs = []source.Registers{{CR0: 0x80050033, CR3: cr3, CR4: cr4, RIP: 0x7ff600001000, CPL: 3}}
		if k := open(t, s).Kernel(); k.Base != s.m.Truth.Kernel.Base || k.DTB != s.m.Truth.Kernel.DTB {
			t.Errorf("shadow %v, la57 %v: kernel %+v", shadow, la57, k)
		}
	}
}

// Where a kernel was found before it is found again without registers; a place where none is
// costs nothing but the search.
func TestKernelIsFoundWhereItWas(t *testing.T) {
	forEachGuest(t, func(t *testing.T, s *machine) {
		want := open(t, s).Kernel()
		at, profiles := want.Place(), winstructtest.With{Store: winstruct.BuiltIn(), Profile: s.m.Profile()}
		g, err := OpenAt(context.Background(), deaf{s}, profiles, at)
		if err != nil {
			t.Fatal(err)
		}
		if got := g.Kernel(); !reflect.DeepEqual(got, want) {
			t.Errorf("%+v, want %+v", got, want)
		}
		for _, wrong := range []Place{{}, {at.Paging, at.DTB, at.Base + 0x1000, ""}, {at.Paging, at.DTB + 0x1000, at.Base, ""}, {"x65", at.DTB, at.Base, ""}} {
			if _, err := OpenAt(context.Background(), deaf{s}, profiles, wrong); !errors.Is(err, errDeaf) {
				t.Errorf("at %+v without registers: %v", wrong, err)
			}
			if g, err := OpenAt(context.Background(), s, profiles, wrong); err != nil || g.Kernel().Base != want.Base {
				t.Errorf("at %+v: %v", wrong, err)
			}
		}
	})
}

// deaf is a guest whose vCPUs nobody can be asked about.
type deaf struct{ source.Source }

var errDeaf = errors.New("nobody answers")

func (deaf) Registers(context.Context) ([]source.Registers, error) { return nil, errDeaf }

func TestCanonical(t *testing.T) {
	for _, c := range []struct {
		va         uint64
		four, five bool
	}{
		{0, true, true}, {0x00007fffffffffff, true, true}, {0x0000800000000000, false, true},
		{0x00ffffffffffffff, false, true}, {0x0100000000000000, false, false}, {0xfeffffffffffffff, false, false},
		{0xff00000000000000, false, true}, {0xffff7fffffffffff, false, true}, {0xffff800000000000, true, true}, {^uint64(0), true, true},
	} {
		four, five := formatX64, formatLA57
		if four.canonical(c.va) != c.four || five.canonical(c.va) != c.five {
			t.Errorf("%#x is canonical with 4 levels: %v, with 5: %v; want %v, %v", c.va, four.canonical(c.va), five.canonical(c.va), c.four, c.five)
		}
	}
}

type noProfiles struct{}

func (noProfiles) Find(id winstruct.Identity) (*winstruct.Profile, error) {
	return nil, &winstruct.MissingError{Identity: id}
}

func TestUnknownBuildIsNamed(t *testing.T) {
	s := lay(t, ntguest.Options{Build: "10.0.22000", Seed: 3})
	_, err := Open(context.Background(), s, noProfiles{})
	var missing *winstruct.MissingError
	if !errors.As(err, &missing) || missing.Identity != s.m.Build.Identity {
		t.Errorf("Open = %v, want the missing identity %v", err, s.m.Build.Identity)
	}
}

func TestOtherGuestsAreToldApart(t *testing.T) {
	linux := make([]byte, 4<<20)
	copy(linux[3<<20:], "Linux version 6.1.0-18-amd64")
	other := make([]byte, 4<<20)
	copy(other[3<<20:], "FreeDOS")
	for _, tt := range []struct {
		name string
		mem  sourcetest.Bytes
		regs []source.Registers
		want error
		text string
	}{
		{"Linux", linux, nil, ErrNotWindows, "looks like Linux"},
		{"other", other, nil, ErrNotWindows, "no page tables"},
		{"empty", make([]byte, 4<<20), nil, ErrBooting, "empty"},
		{"firmware", other, []source.Registers{{CR0: 0x10}}, ErrBooting, "firmware"},
	} {
		src := sourcetest.New(tt.mem, uint64(len(tt.mem)))
		src.Regs = tt.regs
		_, err := Open(context.Background(), src, winstruct.BuiltIn())
		if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: Open = %v, want %v with %q", tt.name, err, tt.want, tt.text)
		}
	}
}

// Pages that Windows has trimmed are found through transition and prototype entries;
// only those that are nowhere in memory are absent.
func TestTrimmedPagesAreFoundWhereverTheyAre(t *testing.T) {
	for _, build := range []string{"6.1.7601", "10.0.19041", "10.0.22000", "10.0.22631", "10.0.26100", "6.1.7601-x86",
		"6.1.7601-x86-pae", "10.0.19041-x86"} {
		s := lay(t, ntguest.Options{Build: build, Seed: 4, Absent: true})
		g := open(t, s)
		procs, _, err := g.Processes(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		pages, trimmed, lost := 0, 0, 0
		for i := range procs {
			mods, _, err := g.Modules(context.Background(), &procs[i])
			if err != nil {
				t.Fatal(err)
			}
			for _, w := range s.m.Truth.Processes {
				if w.PID != procs[i].PID {
					continue
				}
				for _, tm := range w.Modules {
					j := slices.IndexFunc(mods, func(m Module) bool { return m.Base == tm.Base })
					if j < 0 {
						t.Fatalf("%s: pid %d lacks %s", build, w.PID, tm.Name)
					}
					mem, origins := make([]byte, tm.Size), make([]PageOrigin, tm.Size/pageSize)
					if err := g.ReadImage(context.Background(), &procs[i], mods[j].VAD(), tm.Base, mem, origins); err != nil {
						t.Fatal(err)
					}
					for n, o := range origins {
						rva := uint64(n) * pageSize
						pages++
						gone := slices.Contains(tm.Lost, rva)
						if (o == PageAbsent) != gone {
							t.Errorf("%s: pid %d, %s+%#x is of origin %d, lost: %v", build, w.PID, tm.Name, rva, o, gone)
						}
						if gone {
							lost++
						} else if o != PageResident {
							trimmed++
						}
					}
				}
			}
		}
		if trimmed == 0 || lost == 0 {
			t.Errorf("%s: of %d pages %d are trimmed and %d lost: nothing was tested", build, pages, trimmed, lost)
		}
		t.Logf("%s: %d pages, %d found through transition or prototype entries, %d lost", build, pages, trimmed, lost)
	}
}
