package live

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"vmav.dev/vmav/internal/e2e/harness"
	"vmav.dev/vmav/internal/ntguest/gdbtest"
)

// moments lists the processes of a running guest at instants that it is stopped at.
type moments struct {
	g          *harness.Guest
	want       []string
	trampoline []uint64 // user page tables
	seen       map[string]int
}

func newMoments(g *harness.Guest) *moments {
	m := &moments{g: g, seen: make(map[string]int)}
	for _, p := range g.Truth().Processes {
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
	// What only 64-bit code has.
	stopWide = regexp.MustCompile(`RIP=`)
)

func (m *moments) registers() string {
	return harness.Virsh(m.g.T, "qemu-monitor-command", m.g.Name, "--hmp", "info registers -a")
}

// check lists the processes of the guest, which is stopped, and notes what its vCPUs are at.
func (m *moments) check() {
	t := m.g.T
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
		case slices.Contains(m.trampoline, cr3) || slices.Contains(m.trampoline, cr3&^0xfff): // with an identifier in 64-bit guests
			kind = "trampoline"
		}
		kinds = append(kinds, kind)
		m.seen[kind]++
	}
	var procs []harness.Listed
	harness.Decode(t, &procs, 0, "ps", "-c", harness.URI, m.g.Name)
	var got []string
	for _, p := range procs {
		got = append(got, fmt.Sprintf("%d %s %#x", p.PID, p.Name, uint64(p.DTB)))
	}
	slices.Sort(got)
	if !slices.Equal(got, m.want) {
		t.Fatalf("vCPUs at %v: got %q, want %q\n%s", kinds, got, m.want, regs)
	}
}

// TestEveryMoment is the same for 64-bit guests with KVA shadow, with 4 and 5 levels of page tables.
func TestEveryMoment(t *testing.T) {
	for _, more := range [][]string{{"--kva-shadow"}, {"--kva-shadow", "--la57"}} {
		t.Run(strings.Join(more, " "), func(t *testing.T) {
			t.Parallel()
			g := harness.Start(t, "10.0.22000", more...)
			g.Say("pause", "CHURN 0")
			everyMoment(t, g)
		})
	}
}

// everyMoment stops the guest in user mode, in the kernel, and with KVA shadow at each instruction of
// the code between the two, where the kernel's page tables are not loaded.
func everyMoment(t *testing.T, g *harness.Guest) {
	t.Helper()
	g.Start("burn.exe")
	g.Start("thrash.exe")
	m := newMoments(g)
	// Both kinds come about all the time; how often is up to the machine.
	for i := 0; i < 5 || m.seen["user"] == 0 || m.seen["kernel"] == 0; i++ {
		harness.Virsh(t, "suspend", g.Name)
		m.check()
		harness.Virsh(t, "resume", g.Name)
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

// stepTrampoline goes through the ways into the kernel and back under QEMU's debugger, and has the
// guest scanned in between.
func (m *moments) stepTrampoline() {
	t := m.g.T
	t.Helper()
	socket := filepath.Join(filepath.Dir(m.g.Sock), "gdb")
	harness.Virsh(t, "qemu-monitor-command", m.g.Name, "--hmp", "gdbserver unix:"+socket+",server=on,wait=off")
	d := gdbtest.Attach(t, socket)
	passages := m.gates(d)
	for n, p := range passages {
		d.Must("Z1,%x,1", p.at)
		thread := d.Stopped(d.Ask("vCont;c"))
		d.Must("z1,%x,1", p.at)
		for i := range p.steps {
			m.check()
			if n == 0 && i == 1 {
				scanFindsTheMalware(t, m.g)
			}
			d.Step(thread, 1)
		}
	}
	d.Detach()
}

// passage is code to be gone through, so many instructions from an address.
type passage struct {
	at    uint64
	steps int
}

// gates are what lies behind the gates of a page fault, the clock and, in 32-bit guests, of system calls by
// INT 2Eh; and the end of the way back.
func (m *moments) gates(d *gdbtest.Debugger) []passage {
	t := m.g.T
	t.Helper()
	regs := m.registers()
	idt := stopIDT.FindStringSubmatch(regs)
	if idt == nil {
		t.Fatal("no IDT")
	}
	base, err := strconv.ParseUint(idt[1], 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	size := uint64(8)
	wide := stopWide.MatchString(regs)
	if wide {
		size = 16
	}
	gate := func(vector uint64) uint64 {
		g := append(d.Read(base+size*vector, int(size)), 0, 0, 0, 0)
		return uint64(binary.LittleEndian.Uint16(g)) | uint64(binary.LittleEndian.Uint16(g[6:]))<<16 | uint64(binary.LittleEndian.Uint32(g[8:]))<<32
	}
	call := gate(0x2e)
	out := []passage{{gate(0x0e), 10}, {gate(0xd1), 10}}
	// mov %rax, %cr3; pop %rax; iretq, or mov %eax, %cr3; pop %fs; pop %eax; iret.
	way := []byte{0x0f, 0x22, 0xd8, 0x58, 0x48, 0xcf}
	if !wide {
		way = []byte{0x0f, 0x22, 0xd8, 0x0f, 0xa1, 0x58, 0xcf}
		out = append(out, passage{call, 10})
	}
	page := call &^ 0xfff
	i := bytes.Index(d.Read(page, int(call-page)), way)
	if i < 0 {
		t.Fatalf("no way back between %#x and %#x", page, call)
	}
	return append(out, passage{page + uint64(i), 5})
}
