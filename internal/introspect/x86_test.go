package introspect

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"vmav.dev/vmav/internal/ntguest"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/source/sourcetest"
	"vmav.dev/vmav/internal/winstruct"
)

// otherLayouts is the store without the layout of one version.
type otherLayouts struct {
	*winstruct.Store
	without string
}

func (o otherLayouts) Near(version string) []winstruct.Entry {
	return slices.DeleteFunc(o.Store.Near(version), func(e winstruct.Entry) bool { return e.Version == o.without && e.Layer == "layout" })
}

// A 32-bit guest whose kernel nobody has symbols of reads the same by the layout of its
// build, and by that of a near one.
func TestLayoutsServeGuestsWithoutSymbols(t *testing.T) {
	for _, tt := range []struct{ build, without, from string }{
		{"6.1.7601-x86", "", "6.1.7601."},
		{"6.1.7601-x86", "6.1.7601.17514", "6.1.760"},
		{"6.1.7601-x86-pae", "", "6.1.7601.24000"},
		{"6.1.7601-x86-pae", "6.1.7601.24000", "6.1.760"},
		{"10.0.19041-x86", "", "10.0.19041.0"},
	} {
		for _, threeGB := range []bool{false, true} {
			s := lay(t, ntguest.Options{Build: tt.build, Seed: 21, ThreeGB: threeGB, Hide: "malware.exe"})
			exact := open(t, s)
			g, err := Open(context.Background(), s, otherLayouts{winstruct.BuiltIn(), tt.without})
			if err != nil {
				t.Fatalf("%s without %s: %v", tt.build, tt.without, err)
			}
			k := g.Kernel()
			t.Logf("%s without %q: inferred from %s, not used: %v", tt.build, tt.without, k.Inferred, k.Unproven)
			if len(k.Inferred) < len(tt.from) || k.Inferred[:len(tt.from)] != tt.from {
				t.Errorf("%s without %s: inferred from %q", tt.build, tt.without, k.Inferred)
			}
			got, want := g.off.Sym, exact.off.Sym
			if got.ActiveProcessHead != want.ActiveProcessHead || got.CidTable != want.CidTable || got.LoadedModuleList != want.LoadedModuleList {
				t.Errorf("%s: symbols %+v, want %+v", tt.build, got, want)
			}
			if a, b := account(t, g), account(t, exact); !slices.Equal(a, b) {
				t.Errorf("%s without %s: %d lines differ from %d", tt.build, tt.without, len(a), len(b))
			}
		}
	}
}

// The layout of another age of Windows is no layout of this one.
func TestLayoutsOfOtherWindowsAreRefused(t *testing.T) {
	s := lay(t, ntguest.Options{Build: "10.0.19041-x86", Seed: 21})
	_, err := Open(context.Background(), s, otherLayouts{winstruct.BuiltIn(), "10.0.19041.0"})
	var missing *winstruct.MissingError
	if !errors.As(err, &missing) || !errors.Is(err, ErrNoNeighbour) {
		t.Fatalf("Open = %v", err)
	}
}

// The kernel is found from what a 32-bit processor holds in kernel and in user mode, whether
// the source tells EFER or not, and without registers.
func TestKernel32IsFoundFromRegisters(t *testing.T) {
	forEach32(t, func(t *testing.T, s *machine) {
		last := len(s.m.Truth.Processes) - 1
		for _, pid := range []uint64{0, s.m.Truth.Processes[last].PID} {
			r, ok := s.m.Registers32(pid)
			if !ok {
				t.Fatalf("no registers of pid %d", pid)
			}
			for _, efer := range []uint64{0, r.EFER} {
				for _, idt := range []uint64{0, r.IDT} {
					s := machineOf(s.m)
					s.Regs = []source.Registers{{CR0: r.CR0, CR3: r.CR3, CR4: r.CR4, EFER: efer, IDTBase: idt, RIP: r.EIP}}
					k := open(t, s).Kernel()
					want := map[bool]string{true: "IDT of vCPU 0", false: "RIP of vCPU 0"}[idt != 0]
					switch {
					case pid != 0 && s.m.Truth.Processes[last].UserDTB != 0:
						want = "physical scan" // the kernel is not in these tables
					case idt == 0 && pid != 0:
						want = "page tables of vCPU 0"
					}
					if k.Base != s.m.Truth.Kernel.Base || k.DTB != s.m.Truth.Kernel.DTB || k.Located != want {
						t.Errorf("pid %d, EFER %#x, IDT %#x: %+v, want %q", pid, efer, idt, k, want)
					}
				}
			}
		}
	})
}

// A guest with PAE whose memory lies above 32 GiB, page tables included, reads as any other.
func TestPAEGuestAbove32GiB(t *testing.T) {
	for _, build := range []string{"6.1.7601-x86-pae", "10.0.19041-x86"} {
		s := lay(t, ntguest.Options{Build: build, Seed: 5, MemoryMiB: 36 << 10, Absent: true, Hide: "malware.exe"})
		g := open(t, s)
		if n := len(s.m.Truth.Processes); len(account(t, g)) < 3*n {
			t.Errorf("%s: an account of %d lines of %d processes", build, len(account(t, g)), n)
		}
		var high, low int
		for _, p := range s.m.Truth.Processes {
			pa, err := g.as.Translate(p.EPROCESS)
			if err != nil {
				t.Fatal(err)
			}
			if pa>>35 != 0 {
				high++
			}
			if p.DTB>>32 == 0 {
				low++
			}
		}
		if n := len(s.m.Truth.Processes); high != n || low != n {
			t.Errorf("%s: of %d processes %d lie above 32 GiB and %d have their root below 4 GiB", build, n, high, low)
		}
	}
}

// Entries of 32-bit page tables in every form, worked out by hand from the processor's manual
// and from the structures' definitions.
func TestTranslate32(t *testing.T) {
	const gib = 1 << 30
	mem := sourcetest.New(nil, 0)
	// Without PAE: a directory at 0x1000, a table at 0x2000 for 0x80000000.
	mem.Put(0x1000+0x200*4, 0x2003, 4)
	mem.Put(0x2000+0*4, 0x5003, 4)
	mem.Put(0x2000+1*4, 0x00006880, 4)                           // in transition, protection 4
	mem.Put(0x2000+2*4, 0x00003080, 4)                           // page 3 of a page file
	mem.Put(0x2000+3*4, 0x00000080, 4)                           // demand zero
	mem.Put(0x2000+4*4, 0xfffff400, 4)                           // prototype, see the VAD
	mem.Put(0x2000+5*4, 0x12345402, 4)                           // prototype at a distance that is not known
	mem.Put(0x1000+0x201*4, 0xabc00083|0x23<<13, 4)              // 4 MiB at 0x23abc00000
	mem.Put(0x1000+0x202*4, 0x00400083, 4)                       // 4 MiB at 0x400000
	mem.Put(0x1000+0x203*4, 0xfffff003, 4)                       // a table that is not there
	mem.Put(0x5000+0x10*4, 0x7021, 4)                            // a prototype entry, valid
	mem.Put(0x3000+0x20, 0x10001, 8)                             // PAE: four directories, the root at 0x3020
	mem.Put(0x3000+0x28, 0x11001, 8)                             //
	mem.Put(0x3000+0x30, 0x12001, 8)                             //
	mem.Put(0x3000+0x38, 33*gib|1, 8)                            //
	mem.Put(0x12000, 0x13003, 8)                                 // a table for 0x80000000
	mem.Put(0x12000+8, 35*gib|0x83, 8)                           // 2 MiB at 35 GiB
	mem.Put(0x12000+16, 1<<63|0x400083, 8)                       // 2 MiB, not to be executed
	mem.Put(33*gib+511*8, 34*gib|3, 8)                           // a table above 32 GiB for 0xffe00000
	mem.Put(34*gib+511*8, 36*gib|1<<63|0x103, 8)                 // 0xfffff000
	mem.Put(0x13000+0*8, 40*gib|0x103, 8)                        // 0x80000000
	mem.Put(0x13000+1*8, 41*gib|0x880, 8)                        // in transition above 32 GiB
	mem.Put(0x13000+2*8, 3<<32|0x80, 8)                          // page 3 of a page file
	mem.Put(0x13000+3*8, 0x80, 8)                                // demand zero
	mem.Put(0x13000+4*8, 0xffffffff<<32|0x400, 8)                // prototype, see the VAD
	mem.Put(0x13000+5*8, 0x80000028<<32|0x400, 8)                // prototype entry at 0x80000028, in page 0x80000
	mem.Put(40*gib+0x28, 42*gib|0x121, 8)                        // which is valid
	mem.Put(0x13000+6*8, 0x80000030<<32|0x400, 8)                //
	mem.Put(40*gib+0x30, 43*gib|0x8e0, 8)                        // in transition
	mem.Put(0x13000+7*8, 0x80000038<<32|0x400, 8)                //
	mem.Put(40*gib+0x38, 0x80000000<<32|0x400, 8)                // in its file only
	narrow := newSpace(newTables(mem), formatX86, 0x1018)        // with flags of CR3
	pae := newSpace(newTables(mem), formatPAE, 0x3038&^0x1f|0x8) // likewise
	for _, tt := range []struct {
		as     *AddressSpace
		va, pa uint64
		origin PageOrigin
	}{
		{narrow, 0x80000123, 0x5123, PageResident},
		{narrow, 0x80001123, 0x6123, PageTransition},
		{narrow, 0x80002123, 0, pagePagedOut},
		{narrow, 0x80003123, 0, PageDemandZero},
		{narrow, 0x80004123, 0, PageAbsent},
		{narrow, 0x80005123, 0, PageAbsent},
		{narrow, 0x80006123, 0, PageAbsent},
		{narrow, 0x80523456, 0x23abd23456, PageResident},
		{narrow, 0x80812345, 0x00412345, PageResident},
		{narrow, 0x80c00000, 0, PageAbsent},
		{narrow, 0x180000123, 0, PageAbsent},
		{pae, 0x80000123, 40*gib | 0x123, PageResident},
		{pae, 0x80001123, 41*gib | 0x123, PageTransition},
		{pae, 0x80002123, 0, pagePagedOut},
		{pae, 0x80003123, 0, PageDemandZero},
		{pae, 0x80004123, 0, PageAbsent},
		{pae, 0x80005123, 42*gib | 0x123, PagePrototype},
		{pae, 0x80006123, 43*gib | 0x123, PagePrototype},
		{pae, 0x80007123, 0, PageAbsent},
		{pae, 0x80345678, 35*gib | 0x145678, PageResident},
		{pae, 0x80412345, 0x412345, PageResident},
		{pae, 0xfffff123, 36*gib | 0x123, PageResident},
		{pae, 0x40000000, 0, PageAbsent},
		{pae, 0x100000000, 0, PageAbsent},
	} {
		pa, origin, err := tt.as.translate(tt.va)
		if pa != tt.pa || origin != tt.origin || err != nil {
			t.Errorf("%s %#x: %#x, origin %d, %v; want %#x, origin %d", tt.as.f.name, tt.va, pa, origin, err, tt.pa, tt.origin)
		}
		m, err := tt.as.Mapping(tt.va)
		if (err == nil) != (origin == PageResident) || err == nil && m.GPA != pa {
			t.Errorf("%s %#x: mapped at %#x, %v", tt.as.f.name, tt.va, m.GPA, err)
		}
	}
	if pa, origin, err := narrow.prototype(0x80000040, 0x1234); pa != 0x7234 || origin != PagePrototype || err != nil {
		t.Errorf("prototype entry of 4 bytes: %#x, origin %d, %v", pa, origin, err)
	}
	for va, executable := range map[uint64]bool{0x80000000: true, 0x80412345: false, 0xfffff123: false} {
		if m, err := pae.Mapping(va); err != nil || m.Executable != executable {
			t.Errorf("PAE %#x: %+v, %v", va, m, err)
		}
	}
}

// A profile of the other width is refused.
func TestWidthOfProfileIsChecked(t *testing.T) {
	s := lay(t, ntguest.Options{Build: "6.1.7601-x86", Seed: 21})
	wide := winstruct.BuiltIn().List()[0]
	p, err := winstruct.BuiltIn().Find(wide.Identity)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Open(context.Background(), s, fixed{p})
	if want := fmt.Sprintf("windows kernel at %#x: its address space is x86, its profile %s is of x64", s.m.Truth.Kernel.Base,
		s.m.Build.Identity); err == nil || err.Error() != want {
		t.Errorf("Open = %v, want %q", err, want)
	}
}

// fixed is a finder that always finds the same.
type fixed struct{ p *winstruct.Profile }

func (f fixed) Find(winstruct.Identity) (*winstruct.Profile, error) { return f.p, nil }
