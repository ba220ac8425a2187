package ntguest

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	"vmav.dev/vmav/internal/ntguest/gdbtest"
)

// address is where a file of the guest has an exported symbol.
func (m *Machine) address(t *testing.T, path, export string) uint64 {
	t.Helper()
	im := m.b.files.images[path]
	if im == nil {
		t.Fatalf("the guest has no %s", path)
	}
	e, ok := im.file.exports[export]
	if !ok {
		t.Fatalf("%s does not export %s", path, export)
	}
	return im.base + e.rva
}

const svchostPath = `\windows\system32\svchost.exe`

// disturbance is a change to a thread's context and what the sentry says of it.
type disturbance struct {
	name string
	do   func(*gdbtest.Debugger)
	says string
}

func disturbances() []disturbance {
	flip := func(reg, at int, bit byte) func(*gdbtest.Debugger) {
		return func(d *gdbtest.Debugger) {
			raw := d.Reg(reg)
			raw[at] ^= bit
			d.SetReg(reg, raw)
		}
	}
	poke := func(reg int, off uint64) func(*gdbtest.Debugger) {
		return func(d *gdbtest.Debugger) {
			va := d.Reg64(reg) + off
			d.Write(va, []byte{d.Read(va, 1)[0] ^ 0x10})
		}
	}
	var out []disturbance
	for i, name := range gdbtest.Order {
		if i != gdbtest.RSP {
			out = append(out, disturbance{name, flip(i, i%8, 1<<(i%8)), "CONTEXT " + name + " is"})
		}
	}
	for i, bit := range []uint{0, 2, 4, 6, 7, 10, 11} {
		out = append(out, disturbance{fmt.Sprintf("flag %d of %d", bit, i), flip(gdbtest.Flags, int(bit/8), 1<<(bit%8)), "CONTEXT rflags is"})
	}
	return append(out,
		disturbance{"st3", flip(gdbtest.ST0+3, 5, 2), "CONTEXT fxsave "},
		disturbance{"x87 control", flip(gdbtest.FCtrl, 1, 4), "CONTEXT fxsave 1"},
		disturbance{"xmm0", flip(gdbtest.XMM0, 9, 0x80), "CONTEXT fxsave a8"},
		disturbance{"xmm6", flip(gdbtest.XMM0+6, 0, 1), "CONTEXT fxsave 100"},
		disturbance{"xmm15", flip(gdbtest.XMM0+15, 15, 1), "CONTEXT fxsave 198"},
		disturbance{"mxcsr", flip(gdbtest.MXCSR, 1, 0x20), "CONTEXT fxsave 18"},
		disturbance{"the stack", poke(gdbtest.RSP, 0x20), "CONTEXT stack "},
		disturbance{"the stack above", poke(gdbtest.RSP, 0x1f0), "CONTEXT stack "},
		disturbance{"LastErrorValue", poke(gdbtest.GSBase, 0x68), "CONTEXT LastErrorValue is"},
		disturbance{"LastStatusValue", poke(gdbtest.GSBase, 0x1250), "CONTEXT LastStatusValue is"},
	)
}

// TestSentryNotices changes one thing in the context of each of many sentries, at an
// instruction chosen at random, and expects each to say what it was.
func TestSentryNotices(t *testing.T) {
	args, socket := gdbtest.Socket(t)
	g := boot(t, Options{Build: "10.0.19041", Seed: 5}, "q35", args...)
	g.heartbeats(1)
	cases := make(map[uint64]disturbance) // by DTB
	pids := make(map[uint64]disturbance)
	var started []uint64
	for _, c := range disturbances() {
		pid := g.start("svchost.exe")
		pids[pid] = c
		started = append(started, pid)
	}
	truth := g.truth()
	for _, pid := range started {
		cases[truth.byPID(pid).DTB] = pids[pid]
	}
	first, end := g.machine.address(t, svchostPath, "sentry_steps"), g.machine.address(t, svchostPath, "sentry_count")
	rng := rand.New(rand.NewPCG(1, 2))
	d := gdbtest.Attach(t, socket)
	d.Must("Z1,%x,1", first)
	for stops := 0; len(cases) > 0; stops++ {
		if stops == 20000 {
			t.Fatalf("%d sentries were not met where they can be disturbed", len(cases))
		}
		thread := d.Stopped(d.Ask("vCont;c"))
		dtb := d.Reg64(gdbtest.CR3) &^ 0xfff
		c, ok := cases[dtb]
		d.Step(thread, 1)
		if !ok {
			continue
		}
		d.Step(thread, rng.IntN(100))
		if rip := d.Reg64(gdbtest.RIP); rip < first || rip >= end {
			continue // an interrupt came
		}
		// What is pushed is popped again, whatever becomes of the register meanwhile.
		if rsp := d.Reg64(gdbtest.RSP); rsp%16 != 0 || binary.LittleEndian.Uint64(d.Read(rsp+0xc10, 8)) != rsp {
			continue // rsp of struct watched has it where nothing is pushed
		}
		c.do(d)
		delete(cases, dtb)
	}
	d.Must("z1,%x,1", first)
	d.Detach()

	g.bad = []string{"BUGCHECK", "EXCEPTION", "ERROR"}
	said := make(map[uint64]string)
	for beats := 0; len(pids) > 0; {
		line := g.next()
		if strings.HasPrefix(line, "HB ") {
			if beats++; beats > 300 {
				for pid, c := range pids {
					t.Errorf("%s was changed, and process %d has not noticed", c.name, pid)
				}
				return
			}
		}
		if rest, ok := strings.CutPrefix(line, "MSG "); ok {
			pid, text, _ := strings.Cut(rest, " ")
			said[parseHex(t, pid)] = text
		}
		fields := strings.Fields(line)
		if len(fields) != 4 || fields[0] != "EXIT" {
			continue
		}
		pid, _ := strconv.ParseUint(fields[1], 10, 64)
		c, ok := pids[pid]
		if !ok {
			continue
		}
		delete(pids, pid)
		if !strings.HasPrefix(said[pid], c.says) || !strings.HasPrefix(fields[3], "0xdead03") {
			t.Errorf("%s was changed; the sentry said %q, want %q..., and ended with %s", c.name, said[pid], c.says, fields[3])
		}
	}
}
