package ntguest

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/ntguest/gdbtest"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/source/sourcetest"
	"vmav.dev/vmav/internal/winstruct"
	"vmav.dev/vmav/internal/winstruct/winstructtest"
)

const ramSize = 512 << 20

// ReadPhys implements sourcetest.Memory, by way of the file that holds the guest's memory.
func (r ram) ReadPhys(p []byte, addr uint64) error {
	if addr >= ramSize || uint64(len(p)) > ramSize-addr {
		return source.ErrHole
	}
	_, err := r.f.ReadAt(p, int64(addr))
	return err
}

// moments reads a guest at instants that a debugger stops it at.
type moments struct {
	g          *guest
	d          *gdbtest.Debugger
	src        *sourcetest.Guest // its registers are the debugger's
	want       []string
	trampoline map[uint64]bool // user page tables, by DTB
	seen       map[string]int
}

// snapshot reads the registers of every vCPU and notes what kind of moment this is.
func (m *moments) snapshot(stoppedAt string) string {
	var kinds []string
	b := m.g.machine.b
	var lstar, efer uint64
	flags := uint64(0xfff) // of CR3
	switch {
	case b.pae():
		efer, flags = 0x800, 0x1f
	case b.x86():
	case b.opts.KVAShadow:
		lstar = b.sym("KiSystemCall64Shadow")
	default:
		lstar = b.sym("KiSystemCall64")
	}
	m.src.Regs = nil
	for i, thread := range m.d.Threads() {
		m.d.Must("Hg%s", thread)
		r := source.Registers{CPU: i, RIP: m.d.Reg64(gdbtest.RIP), RSP: m.d.Reg64(gdbtest.RSP), CPL: uint8(m.d.Reg64(gdbtest.CS) & 3),
			CR0: m.d.Reg64(gdbtest.CR0), CR3: m.d.Reg64(gdbtest.CR3), CR4: m.d.Reg64(gdbtest.CR4), EFER: efer, LSTAR: lstar, IDTBase: b.cpus[i].idt}
		m.src.Regs = append(m.src.Regs, r)
		switch dtb := r.CR3 &^ flags; {
		case r.CPL == 3:
			kinds = append(kinds, "user")
		case m.trampoline[dtb]:
			kinds = append(kinds, "trampoline")
		default:
			kinds = append(kinds, "kernel")
		}
	}
	if stoppedAt != "" {
		m.d.Must("Hg%s", stoppedAt)
	}
	return strings.Join(kinds, "+")
}

// check lists the processes now; they must be those of the truth.
func (m *moments) check(stoppedAt string) {
	t := m.g.t
	t.Helper()
	kind := m.snapshot(stoppedAt)
	m.seen[kind]++
	store := winstructtest.With{Store: winstruct.BuiltIn(), Profile: m.g.machine.Profile()}
	g, err := introspect.Open(context.Background(), m.src, store)
	if err != nil {
		t.Fatalf("vCPUs in %s mode, %+v: %v", kind, m.src.Regs, err)
	}
	list, problems, err := g.Processes(context.Background())
	if err != nil || len(problems) > 0 {
		t.Fatalf("vCPUs in %s mode: %v, problems %v", kind, err, problems)
	}
	var got []string
	for _, p := range list {
		got = append(got, fmt.Sprintf("%d %s %#x", p.PID, p.Name, p.DTB))
	}
	slices.Sort(got)
	if !slices.Equal(got, m.want) {
		t.Fatalf("vCPUs in %s mode: got %q, want %q", kind, got, m.want)
	}
}

// TestEveryMomentListsTheSame stops running guests at instants that nobody chooses, and
// at each instruction of the code that enters the kernel and, with KVA shadow, changes
// the page tables, and has the processes listed at each.
func TestEveryMomentListsTheSame(t *testing.T) {
	for _, c := range []struct {
		build        string
		shadow, la57 bool
	}{
		{"10.0.22000", false, false}, {"10.0.22000", true, false}, {"10.0.22000", false, true}, {"10.0.22000", true, true},
		{"6.1.7601-x86", false, false}, {"6.1.7601-x86", true, false}, {"10.0.19041-x86", false, false}, {"10.0.19041-x86", true, false},
	} {
		t.Run(fmt.Sprintf("%s shadow %v la57 %v", c.build, c.shadow, c.la57), func(t *testing.T) {
			args, path := ramFile(t)
			debug, socket := gdbtest.Socket(t)
			g := boot(t, Options{Build: c.build, Seed: 12, KVAShadow: c.shadow, LA57: c.la57}, "q35", append(args, debug...)...)
			g.heartbeats(1)
			g.send("pause")
			g.expect(`^CHURN 0$`)
			for _, name := range g.widths("burn.exe", "thrash.exe", "threads.exe", "wowthreads.exe") {
				g.start(name)
			}
			m := &moments{g: g, src: sourcetest.New(openRAM(t, path), ramSize), trampoline: make(map[uint64]bool), seen: make(map[string]int)}
			for _, p := range g.truth().Processes {
				m.want = append(m.want, fmt.Sprintf("%d %s %#x", p.PID, p.Name, p.DTB))
				if p.UserDTB != 0 {
					m.trampoline[p.UserDTB] = true
				}
			}
			slices.Sort(m.want)
			m.d = gdbtest.Attach(t, socket)
			rng := rand.New(rand.NewPCG(3, 4))
			for range 40 {
				m.check("")
				m.d.Run()
				time.Sleep(time.Duration(rng.IntN(20000)) * time.Microsecond)
				m.d.Halt()
			}
			count := func(kind string) (n int) {
				for k, v := range m.seen {
					if strings.Contains(k, kind) {
						n += v
					}
				}
				return n
			}
			if count("user") == 0 || count("kernel") == 0 {
				t.Errorf("the moments were %v: not both user and kernel mode", m.seen)
			}
			m.stepEntries()
			if c.shadow && count("trampoline") < 10 {
				t.Errorf("the moments were %v: too few in the trampoline", m.seen)
			}
			t.Logf("moments: %v", m.seen)
		})
	}
}

// stepEntries goes through the entries of system calls, of a page fault and of the clock, and with
// KVA shadow through the way out, one instruction at a time.
func (m *moments) stepEntries() {
	for _, at := range m.entries() {
		for range 3 {
			m.d.Must("Z1,%x,1", at)
			thread := m.d.Stopped(m.d.Ask("vCont;c"))
			m.d.Must("z1,%x,1", at)
			for range 12 {
				m.check(thread)
				m.d.Step(thread, 1)
			}
		}
	}
}

// entries are the addresses of code that stepEntries goes through.
func (m *moments) entries() []uint64 {
	b := m.g.machine.b
	rt := b.image.rt
	calls, vectors := rt.Syscall64, rt.Vectors
	if b.opts.KVAShadow {
		calls, vectors = rt.ShadowSyscall64, rt.ShadowVectors
	}
	at := func(off uint32) uint64 { return b.image.runtime + uint64(off) }
	out := []uint64{at(vectors + 16*timerVector)}
	switch {
	case b.opts.KVAShadow && b.x86():
		out = append(out, at(calls), at(vectors+16*14), at(vectors+16*0x2e))
	case b.opts.KVAShadow:
		out = append(out, b.sym("KiSystemCall64Shadow"), b.sym("KiPageFaultShadow"))
	case b.x86():
		out = append(out, b.sym("KiFastCallEntry"), b.sym("KiTrap0E"), b.sym("KiSystemService"))
	default:
		out = append(out, b.sym("KiSystemCall64"), b.sym("KiPageFault"))
	}
	if !b.opts.KVAShadow {
		return out
	}
	code := make([]byte, rt.KVASEnd-rt.KVASStart)
	b.kernel.read(at(rt.KVASStart), code)
	// mov %rax, %cr3; pop %rax; iretq: the user's page tables are there again. In 32-bit code
	// fs comes back between the two.
	way := []byte{0x0f, 0x22, 0xd8, 0x58, 0x48, 0xcf}
	if b.x86() {
		way = []byte{0x0f, 0x22, 0xd8, 0x0f, 0xa1, 0x58, 0xcf}
	}
	i := bytes.Index(code, way)
	if i < 0 {
		m.g.t.Fatal("no way out in the runtime's shadow code")
	}
	return append(out, at(rt.KVASStart)+uint64(i))
}
