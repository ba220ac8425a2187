package ntguest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"
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

const (
	svchostPath = `\windows\system32\svchost.exe`
	ntdllPath   = `\windows\system32\ntdll.dll`
)

// disturbance is a change to a thread's context and what the sentry says of it.
type disturbance struct {
	name string
	do   func(*debugger)
	says string
}

func disturbances() []disturbance {
	flip := func(reg, at int, bit byte) func(*debugger) {
		return func(d *debugger) {
			raw := d.reg(reg)
			raw[at] ^= bit
			d.setReg(reg, raw)
		}
	}
	poke := func(reg int, off uint64) func(*debugger) {
		return func(d *debugger) {
			va := d.reg64(reg) + off
			d.write(va, []byte{d.read(va, 1)[0] ^ 0x10})
		}
	}
	var out []disturbance
	for i, name := range gdbOrder {
		if i != gdbRSP {
			out = append(out, disturbance{name, flip(i, i%8, 1<<(i%8)), "CONTEXT " + name + " is"})
		}
	}
	for i, bit := range []uint{0, 2, 4, 6, 7, 10, 11} {
		out = append(out, disturbance{fmt.Sprintf("flag %d of %d", bit, i), flip(gdbFlags, int(bit/8), 1<<(bit%8)), "CONTEXT rflags is"})
	}
	return append(out,
		disturbance{"st3", flip(gdbST0+3, 5, 2), "CONTEXT fxsave "},
		disturbance{"x87 control", flip(gdbFCtrl, 1, 4), "CONTEXT fxsave 1"},
		disturbance{"xmm0", flip(gdbXMM0, 9, 0x80), "CONTEXT fxsave a8"},
		disturbance{"xmm6", flip(gdbXMM0+6, 0, 1), "CONTEXT fxsave 100"},
		disturbance{"xmm15", flip(gdbXMM0+15, 15, 1), "CONTEXT fxsave 198"},
		disturbance{"mxcsr", flip(gdbMXCSR, 1, 0x20), "CONTEXT fxsave 18"},
		disturbance{"the stack", poke(gdbRSP, 0x20), "CONTEXT stack "},
		disturbance{"the stack above", poke(gdbRSP, 0x1f0), "CONTEXT stack "},
		disturbance{"LastErrorValue", poke(gdbGSBase, 0x68), "CONTEXT LastErrorValue is"},
		disturbance{"LastStatusValue", poke(gdbGSBase, 0x1250), "CONTEXT LastStatusValue is"},
	)
}

// TestSentryNotices changes one thing in the context of each of many sentries, at an
// instruction chosen at random, and expects each to say what it was.
func TestSentryNotices(t *testing.T) {
	args, socket := gdbSocket(t)
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
	d := attach(t, socket)
	d.must("Z1,%x,1", first)
	for len(cases) > 0 {
		thread := d.stopped(d.ask("vCont;c"))
		dtb := d.reg64(gdbCR3) &^ 0xfff
		c, ok := cases[dtb]
		d.step(thread, 1)
		if !ok {
			continue
		}
		d.step(thread, rng.IntN(100))
		if rip := d.reg64(gdbRIP); rip < first || rip >= end || d.reg64(gdbRSP)%16 != 0 {
			continue // a push has moved RSP; or an interrupt came
		}
		c.do(d)
		delete(cases, dtb)
	}
	d.must("z1,%x,1", first)
	d.put("D")
	d.get()

	g.bad = []string{"BUGCHECK", "EXCEPTION", "ERROR"}
	said := make(map[uint64]string)
	for len(pids) > 0 {
		line := g.next()
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

// surrogate borrows a user-mode thread, as an agent outside of the guest would: it has
// the thread make calls of ntdll, each returning to an instruction that jumps to
// itself, and then gives it its registers back.
type surrogate struct {
	d      *debugger
	thread string
	saved  [18][]byte // general registers, RIP, RFLAGS
	stack  uint64
	loop   uint64
}

// borrow stops the guest at moments that nobody chooses until a vCPU is in user mode
// in one of the address spaces, with room on its stack.
func borrow(d *debugger, spaces map[uint64]bool, loop uint64) *surrogate {
	d.t.Helper()
	for range 10000 {
		for _, thread := range d.threads() {
			d.must("Hg%s", thread)
			if d.reg64(gdbCS)&3 != 3 || !spaces[d.reg64(gdbCR3)&^0xfff] {
				continue
			}
			s := &surrogate{d: d, thread: thread, stack: d.reg64(gdbRSP)&^15 - 0x400, loop: loop}
			if !strings.HasPrefix(d.ask("M%x,8:0000000000000000", s.stack), "OK") {
				continue // the page below is not there
			}
			for i := range s.saved {
				s.saved[i] = d.reg(i)
			}
			return s
		}
		d.run()
		time.Sleep(time.Millisecond)
		d.halt()
	}
	d.t.Fatal("no thread is ever found in user mode")
	return nil
}

// call has the thread call a function and returns its RAX.
func (s *surrogate) call(function uint64, args ...uint64) uint64 {
	s.d.t.Helper()
	rsp := s.stack - 8
	s.d.write(rsp, binary.LittleEndian.AppendUint64(nil, s.loop))
	s.d.setReg64(gdbRSP, rsp)
	s.d.setReg64(gdbRIP, function)
	for i, reg := range []int{2, 3, 8, 9}[:len(args)] { // rcx, rdx, r8, r9
		s.d.setReg64(reg, args[i])
	}
	s.d.must("Z1,%x,1", s.loop)
	for {
		s.d.cont() // the thread may go on on another vCPU
		if s.d.reg64(gdbRSP) == s.stack {
			break
		}
		s.d.t.Fatal("another thread is at the loop")
	}
	s.d.must("z1,%x,1", s.loop)
	return s.d.reg64(gdbRAX)
}

func (s *surrogate) giveBack() {
	for i, raw := range s.saved {
		s.d.setReg(i, raw)
	}
}

// TestSurrogate ends processes that only wait, by way of threads of services, at random
// moments, and expects those services to notice nothing and to keep no handle.
func TestSurrogate(t *testing.T) {
	args, socket := gdbSocket(t)
	g := boot(t, Options{Build: "10.0.19041", Seed: 6}, "q35", args...)
	g.heartbeats(2)
	ntdll := g.machine.b.files.images[ntdllPath]
	loop := bytes.Index(ntdll.content, []byte{0xeb, 0xfe})
	if loop < 0 {
		t.Fatal("the guest's ntdll has no instruction that jumps to itself")
	}
	before := g.truth()
	spaces, handles := make(map[uint64]bool), make(map[uint64]int)
	for _, p := range before.Processes {
		if (p.Name == "svchost.exe" || p.Name == "spoolsv.exe") && p.SID == sidSystem {
			spaces[p.DTB] = true
			handles[p.PID] = p.Handles
		}
	}
	open, terminate, closeHandle := g.machine.address(t, ntdllPath, "NtOpenProcess"), g.machine.address(t, ntdllPath, "NtTerminateProcess"),
		g.machine.address(t, ntdllPath, "NtClose")
	protected := g.start("MsMpEng.exe")
	body := uint64(g.machine.b.at("_OBJECT_HEADER", 0).must("Body").Offset)
	for range 16 {
		pid := g.start("service.exe")
		header := g.truth().byPID(pid).EPROCESS - body
		d := attach(t, socket)
		s := borrow(d, spaces, ntdll.base+uint64(loop))
		// OBJECT_ATTRIBUTES, CLIENT_ID and the handle, above the calls' own stack.
		at := s.stack + 0x40
		block := make([]byte, 0x48)
		binary.LittleEndian.PutUint32(block, 48)
		binary.LittleEndian.PutUint64(block[0x30:], pid)
		d.write(at, block)
		counts := func() (pointers, handles uint64) {
			raw := d.read(header, 16)
			return binary.LittleEndian.Uint64(raw), binary.LittleEndian.Uint64(raw[8:])
		}
		references, handlesOpen := counts()
		for _, refused := range []struct{ pid, status uint64 }{{protected, 0xc0000022}, {4, 0xc0000022}, {0x7ffffffc, 0xc000000b}} {
			d.write(at+0x30, binary.LittleEndian.AppendUint64(nil, refused.pid))
			if status := s.call(open, at+0x40, 1, at, at+0x30); status != refused.status {
				t.Fatalf("NtOpenProcess(%d): %#x, want %#x", refused.pid, status, refused.status)
			}
		}
		d.write(at+0x30, binary.LittleEndian.AppendUint64(nil, pid))
		if status := s.call(open, at+0x40, 1, at, at+0x30); status != 0 {
			t.Fatalf("NtOpenProcess(%d): %#x", pid, status)
		}
		if r, h := counts(); r != references+1 || h != handlesOpen+1 {
			t.Errorf("with a handle more, process %d has %d references and %d handles; had %d and %d", pid, r, h, references, handlesOpen)
		}
		handle := binary.LittleEndian.Uint64(d.read(at+0x40, 8))
		if status := s.call(terminate, handle, 0xc0000906); status != 0 {
			t.Fatalf("NtTerminateProcess(%#x): %#x", handle, status)
		}
		if status := s.call(closeHandle, handle); status != 0 {
			t.Fatalf("NtClose(%#x): %#x", handle, status)
		}
		if r, h := counts(); r != references || h != handlesOpen {
			t.Errorf("with the handle closed, process %d has %d references and %d handles; had %d and %d", pid, r, h, references, handlesOpen)
		}
		s.giveBack()
		d.put("D")
		d.get()
		d.conn.Close()
		g.expect(fmt.Sprintf(`^EXIT %d service.exe 0xc0000906$`, pid))
	}
	g.heartbeats(3)
	after := g.truth()
	for pid, n := range handles {
		if p := after.byPID(pid); p == nil || p.State != "running" || p.Handles != n {
			t.Errorf("service %d, which had %d handles: %+v", pid, n, p)
		}
	}
}
