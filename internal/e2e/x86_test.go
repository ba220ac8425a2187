package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"vmav.dev/vmav/internal/ntguest/gdbtest"
)

// forms32 are the 32-bit guests: without PAE and with it, each with and without KVA shadow.
var forms32 = []struct {
	build string
	more  []string
}{
	{"6.1.7601-x86", nil},
	{"6.1.7601-x86", []string{"--kva-shadow"}},
	{"6.1.7601-x86-pae", []string{"--3gb"}},
	{"10.0.19041-x86", nil},
	{"10.0.19041-x86", []string{"--kva-shadow"}},
}

// start32 boots a 32-bit guest, whose profile the user imports.
func start32(t *testing.T, build string, more ...string) *guest {
	t.Helper()
	t.Setenv("XDG_DATA_HOME", t.TempDir())
	profile := filepath.Join(t.TempDir(), "profile.json")
	g := start(t, build, append([]string{"--profile", profile}, more...)...)
	if out, errs, status := vmav(t, "profile", "import", profile); status != 0 {
		t.Fatalf("profile import: status %d, %s%s", status, out, errs)
	}
	return g
}

// 32-bit guests that run are listed as they say themselves, live and from a dump, are scanned, and are
// read at any moment.
func TestRunning32BitGuests(t *testing.T) {
	for _, form := range forms32 {
		t.Run(strings.Join(append([]string{form.build}, form.more...), " "), func(t *testing.T) {
			g := start32(t, form.build, form.more...)
			g.say("pause", "CHURN 0")
			g.say("freeze", "FROZEN 1")
			want := g.truth()
			compare(t, want, g.name, "-c", uri)
			core := filepath.Join(openDir(t), "guest.core")
			virsh(t, "dump", "--memory-only", "--live", g.name, core)
			if err := os.Chmod(core, 0o644); err != nil {
				t.Fatal(err)
			}
			compare(t, want, "-a", core)
			g.say("thaw", "FROZEN 0")
			scanFindsTheMalware(t, g)
			everyMoment(t, g)
		})
	}
}

func scanFindsTheMalware(t *testing.T, g *guest) {
	t.Helper()
	var got scanResult
	decode(t, &got, 1, "scan", "-c", uri, g.name, "-d", database(t))
	if len(got.Domains) != 1 {
		t.Fatalf("%d domains", len(got.Domains))
	}
	d := got.Domains[0]
	for _, e := range d.Errors {
		t.Errorf("%s: %s", e.What, e.Error)
	}
	if len(d.Findings) != 1 || d.Findings[0].Process != "malware.exe" || d.Findings[0].Signature != "Vmav.Test.Malware" {
		t.Errorf("findings %+v", d.Findings)
	}
}

// moments lists the processes of a running guest at instants that it is stopped at.
type moments struct {
	g          *guest
	want       []string
	trampoline []uint64 // user page tables
	seen       map[string]int
}

func newMoments(g *guest) *moments {
	m := &moments{g: g, seen: make(map[string]int)}
	for _, p := range g.truth().Processes {
		m.want = append(m.want, fmt.Sprintf("%d %s %#x", p.PID, p.Name, p.DTB))
		if p.UserDTB != 0 {
			m.trampoline = append(m.trampoline, p.UserDTB)
		}
	}
	slices.Sort(m.want)
	return m
}

var (
	stopCPL = regexp.MustCompile(`CPL=(\d)`)
	stopCR3 = regexp.MustCompile(`CR3=([0-9a-f]+)`)
	stopIDT = regexp.MustCompile(`IDT= +([0-9a-f]+)`)
)

func (m *moments) registers() string {
	return virsh(m.g.t, "qemu-monitor-command", m.g.name, "--hmp", "info registers -a")
}

// check lists the processes of the guest, which is stopped, and notes what its vCPUs are at.
func (m *moments) check() {
	t := m.g.t
	t.Helper()
	regs := m.registers()
	cpls, cr3s := stopCPL.FindAllStringSubmatch(regs, -1), stopCR3.FindAllStringSubmatch(regs, -1)
	if len(cpls) == 0 || len(cpls) != len(cr3s) {
		t.Fatalf("no registers of vCPUs in %q", regs)
	}
	var kinds []string
	for i := range cpls {
		cr3, err := strconv.ParseUint(cr3s[i][1], 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		kind := "kernel"
		switch {
		case cpls[i][1] == "3":
			kind = "user"
		case slices.Contains(m.trampoline, cr3):
			kind = "trampoline"
		}
		kinds = append(kinds, kind)
		m.seen[kind]++
	}
	var procs []listed
	decode(t, &procs, 0, "ps", "-c", uri, m.g.name)
	var got []string
	for _, p := range procs {
		got = append(got, fmt.Sprintf("%d %s %#x", p.PID, p.Name, uint64(p.DTB)))
	}
	slices.Sort(got)
	if !slices.Equal(got, m.want) {
		t.Fatalf("vCPUs at %v: got %q, want %q\n%s", kinds, got, m.want, regs)
	}
}

// everyMoment stops the guest in user mode, in the kernel, and with KVA shadow at each instruction of
// the code between the two, where the kernel's page tables are not loaded.
func everyMoment(t *testing.T, g *guest) {
	t.Helper()
	g.start("burn.exe")
	g.start("thrash.exe")
	m := newMoments(g)
	// Both kinds come about all the time; how often is up to the machine.
	for i := 0; i < 5 || m.seen["user"] == 0 || m.seen["kernel"] == 0; i++ {
		virsh(t, "suspend", g.name)
		m.check()
		virsh(t, "resume", g.name)
		if i == 500 {
			t.Fatalf("of 500 moments there were %v", m.seen)
		}
	}
	if len(m.trampoline) > 0 {
		m.stepTrampoline()
		if m.seen["trampoline"] < 10 {
			t.Errorf("the moments were %v: too few in the trampoline", m.seen)
		}
	}
	t.Logf("moments: %v", m.seen)
}

// stepTrampoline goes through what QEMU's debugger finds behind the gates of a page fault and of
// system calls, and through the way back.
func (m *moments) stepTrampoline() {
	t := m.g.t
	t.Helper()
	socket := filepath.Join(filepath.Dir(m.g.sock), "gdb")
	virsh(t, "qemu-monitor-command", m.g.name, "--hmp", "gdbserver unix:"+socket+",server=on,wait=off")
	d := gdbtest.Attach(t, socket)
	idt := stopIDT.FindStringSubmatch(m.registers())
	if idt == nil {
		t.Fatal("no IDT")
	}
	base, err := strconv.ParseUint(idt[1], 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	gate := func(vector uint64) uint64 {
		g := d.Read(base+8*vector, 8)
		return uint64(g[0]) | uint64(g[1])<<8 | uint64(g[6])<<16 | uint64(g[7])<<24
	}
	fault, call := gate(0x0e), gate(0x2e)
	// The way back is before the gates: mov %eax, %cr3; pop %fs; pop %eax; iret.
	page := fault &^ 0xfff
	back := bytes.Index(d.Read(page, int(fault-page)), []byte{0x0f, 0x22, 0xd8, 0x0f, 0xa1, 0x58, 0xcf})
	if back < 0 {
		t.Fatalf("no way back between %#x and %#x", page, fault)
	}
	for at, steps := range map[uint64]int{fault: 10, call: 10, page + uint64(back): 5} {
		d.Must("Z1,%x,1", at)
		thread := d.Stopped(d.Ask("vCont;c"))
		d.Must("z1,%x,1", at)
		for range steps {
			m.check()
			d.Step(thread, 1)
		}
	}
	d.Detach()
}
