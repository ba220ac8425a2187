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
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/winstruct"
)

// stopped is a guest that a debugger has stopped, as a Source: its memory by way of
// the file that holds it, its registers by way of the debugger.
type stopped struct {
	ram
	regs []source.Registers
}

const ramSize = 512 << 20

func (s *stopped) ReadPhys(p []byte, addr uint64) error {
	if addr >= ramSize || uint64(len(p)) > ramSize-addr {
		return &source.AccessError{Addr: addr, Size: len(p), Err: source.ErrHole}
	}
	_, err := s.f.ReadAt(p, int64(addr))
	return err
}
func (s *stopped) Ranges() []source.Range { return []source.Range{{Start: 0, Size: ramSize}} }
func (s *stopped) Registers(context.Context) ([]source.Registers, error) {
	return s.regs, nil
}
func (s *stopped) Info() source.Info { return source.Info{Kind: "image", Name: "ntguest"} }
func (s *stopped) Close() error      { return nil }

// moments reads a guest at instants that a debugger stops it at.
type moments struct {
	g          *guest
	d          *debugger
	src        *stopped
	want       []string
	trampoline map[uint64]bool // user page tables, by DTB
	seen       map[string]int
}

// snapshot reads the registers of every vCPU and notes what kind of moment this is.
func (m *moments) snapshot(stoppedAt string) string {
	var kinds []string
	b := m.g.machine.b
	lstar := b.sym("KiSystemCall64")
	if b.opts.KVAShadow {
		lstar = b.sym("KiSystemCall64Shadow")
	}
	m.src.regs = nil
	for i, thread := range m.d.threads() {
		m.d.must("Hg%s", thread)
		r := source.Registers{CPU: i, RIP: m.d.reg64(gdbRIP), RSP: m.d.reg64(gdbRSP), CPL: uint8(m.d.reg64(gdbCS) & 3),
			CR0: m.d.reg64(gdbCR0), CR3: m.d.reg64(gdbCR3), CR4: m.d.reg64(gdbCR4), LSTAR: lstar, IDTBase: b.cpus[i].idt}
		m.src.regs = append(m.src.regs, r)
		switch dtb := r.CR3 &^ 0xfff; {
		case r.CPL == 3:
			kinds = append(kinds, "user")
		case m.trampoline[dtb]:
			kinds = append(kinds, "trampoline")
		default:
			kinds = append(kinds, "kernel")
		}
	}
	if stoppedAt != "" {
		m.d.must("Hg%s", stoppedAt)
	}
	return strings.Join(kinds, "+")
}

// check lists the processes now; they must be those of the truth.
func (m *moments) check(stoppedAt string) {
	t := m.g.t
	t.Helper()
	kind := m.snapshot(stoppedAt)
	m.seen[kind]++
	g, err := introspect.Open(context.Background(), m.src, winstruct.BuiltIn())
	if err != nil {
		t.Fatalf("vCPUs in %s mode, %+v: %v", kind, m.src.regs, err)
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
// with KVA shadow at each instruction of the code that changes the page tables, and has
// the processes listed at each.
func TestEveryMomentListsTheSame(t *testing.T) {
	for _, c := range []struct{ shadow, la57 bool }{{false, false}, {true, false}, {false, true}, {true, true}} {
		t.Run(fmt.Sprintf("shadow %v la57 %v", c.shadow, c.la57), func(t *testing.T) {
			args, path := ramFile(t)
			debug, socket := gdbSocket(t)
			g := boot(t, Options{Build: "10.0.22000", Seed: 12, KVAShadow: c.shadow, LA57: c.la57}, "q35", append(args, debug...)...)
			g.heartbeats(1)
			g.send("pause")
			g.expect(`^CHURN 0$`)
			for _, name := range []string{"burn.exe", "thrash.exe", "wowthreads.exe"} {
				g.start(name)
			}
			m := &moments{g: g, src: &stopped{ram: openRAM(t, path)}, trampoline: make(map[uint64]bool), seen: make(map[string]int)}
			for _, p := range g.truth().Processes {
				m.want = append(m.want, fmt.Sprintf("%d %s %#x", p.PID, p.Name, p.DTB))
				if p.UserDTB != 0 {
					m.trampoline[p.UserDTB] = true
				}
			}
			slices.Sort(m.want)
			m.d = attach(t, socket)
			rng := rand.New(rand.NewPCG(3, 4))
			for range 40 {
				m.check("")
				m.d.run()
				time.Sleep(time.Duration(rng.IntN(20000)) * time.Microsecond)
				m.d.halt()
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
			if c.shadow {
				m.stepTrampoline()
				if count("trampoline") < 10 {
					t.Errorf("the moments were %v: too few in the trampoline", m.seen)
				}
			}
			t.Logf("moments: %v", m.seen)
		})
	}
}

// stepTrampoline goes through the entries of a system call and of a page fault, and
// through the way out, one instruction at a time.
func (m *moments) stepTrampoline() {
	b := m.g.machine.b
	code := make([]byte, b.image.rt.KVASEnd-b.image.rt.KVASStart)
	b.kernel.read(b.image.runtime+uint64(b.image.rt.KVASStart), code)
	// mov %rax, %cr3; pop %rax; iretq: the user's page tables are there again.
	out := bytes.Index(code, []byte{0x0f, 0x22, 0xd8, 0x58, 0x48, 0xcf})
	if out < 0 {
		m.g.t.Fatal("no way out in the runtime's shadow code")
	}
	for _, at := range []uint64{b.sym("KiSystemCall64Shadow"), b.sym("KiPageFaultShadow"), b.image.runtime + uint64(b.image.rt.KVASStart) + uint64(out)} {
		for range 3 {
			m.d.must("Z1,%x,1", at)
			thread := m.d.stopped(m.d.ask("vCont;c"))
			m.d.must("z1,%x,1", at)
			for range 12 {
				m.check(thread)
				m.d.step(thread, 1)
			}
		}
	}
}
