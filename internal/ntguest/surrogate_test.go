package ntguest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	"vmav.dev/vmav/internal/ntguest/gdbtest"
)

const ntdllPath = `\windows\system32\ntdll.dll`

// surrogate borrows a user-mode thread, as an agent outside of the guest would: it has
// the thread make calls of ntdll, each returning to an instruction that jumps to
// itself, and then gives it its registers back.
type surrogate struct {
	d      *gdbtest.Debugger
	thread string
	saved  [18][]byte // general registers, RIP, RFLAGS
	stack  uint64
	loop   uint64
}

// borrow stops the guest at moments that nobody chooses until a vCPU is in user mode
// in one of the address spaces, with room on its stack.
func borrow(d *gdbtest.Debugger, spaces map[uint64]bool, loop uint64) *surrogate {
	d.T.Helper()
	for range 10000 {
		for _, thread := range d.Threads() {
			d.Must("Hg%s", thread)
			if d.Reg64(gdbtest.CS)&3 != 3 || !spaces[d.Reg64(gdbtest.CR3)&^0xfff] {
				continue
			}
			s := &surrogate{d: d, thread: thread, stack: d.Reg64(gdbtest.RSP)&^15 - 0x400, loop: loop}
			if !strings.HasPrefix(d.Ask("M%x,8:0000000000000000", s.stack), "OK") {
				continue // the page below is not there
			}
			for i := range s.saved {
				s.saved[i] = d.Reg(i)
			}
			return s
		}
		d.Run()
		time.Sleep(time.Millisecond)
		d.Halt()
	}
	d.T.Fatal("no thread is ever found in user mode")
	return nil
}

// call has the thread call a function and returns its RAX.
func (s *surrogate) call(function uint64, args ...uint64) uint64 {
	s.d.T.Helper()
	rsp := s.stack - 8
	s.d.Write(rsp, binary.LittleEndian.AppendUint64(nil, s.loop))
	s.d.SetReg64(gdbtest.RSP, rsp)
	s.d.SetReg64(gdbtest.RIP, function)
	for i, reg := range []int{2, 3, 8, 9}[:len(args)] { // rcx, rdx, r8, r9
		s.d.SetReg64(reg, args[i])
	}
	s.d.Must("Z1,%x,1", s.loop)
	for {
		s.d.Cont() // the thread may go on on another vCPU
		if s.d.Reg64(gdbtest.RSP) == s.stack {
			break
		}
		s.d.T.Fatal("another thread is at the loop")
	}
	s.d.Must("z1,%x,1", s.loop)
	return s.d.Reg64(gdbtest.RAX)
}

func (s *surrogate) giveBack() {
	for i, raw := range s.saved {
		s.d.SetReg(i, raw)
	}
}

// surrogates are the calls of the guest's ntdll that a test has borrowed threads make.
type surrogates struct {
	g                            *guest
	socket                       string
	loop                         uint64
	open, terminate, closeHandle uint64
}

func newSurrogates(t *testing.T, opts Options) *surrogates {
	t.Helper()
	args, socket := gdbtest.Socket(t)
	g := boot(t, opts, "q35", args...)
	g.heartbeats(2)
	ntdll := g.machine.b.files.images[ntdllPath]
	loop := bytes.Index(ntdll.content, []byte{0xeb, 0xfe})
	if loop < 0 {
		t.Fatal("the guest's ntdll has no instruction that jumps to itself")
	}
	return &surrogates{g: g, socket: socket, loop: ntdll.base + uint64(loop), open: g.machine.address(t, ntdllPath, "NtOpenProcess"),
		terminate: g.machine.address(t, ntdllPath, "NtTerminateProcess"), closeHandle: g.machine.address(t, ntdllPath, "NtClose")}
}

// with borrows a thread that runs in one of the address spaces, and gives it back.
func (u *surrogates) with(spaces map[uint64]bool, f func(d *gdbtest.Debugger, s *surrogate)) {
	u.g.t.Helper()
	d := gdbtest.Attach(u.g.t, u.socket)
	s := borrow(d, spaces, u.loop)
	f(d, s)
	s.giveBack()
	d.Detach()
}

// openProcess has the thread open a process to end it: OBJECT_ATTRIBUTES, CLIENT_ID and
// the handle lie above the call's own stack.
func (u *surrogates) openProcess(s *surrogate, pid uint64) (handle, status uint64) {
	u.g.t.Helper()
	at := s.stack + 0x40
	block := make([]byte, 0x48)
	binary.LittleEndian.PutUint32(block, 48)
	binary.LittleEndian.PutUint64(block[0x30:], pid)
	s.d.Write(at, block)
	status = s.call(u.open, at+0x40, 1, at, at+0x30)
	return binary.LittleEndian.Uint64(s.d.Read(at+0x40, 8)), status
}

// sentrySpaces are the page tables that services of an account run on in user mode, and
// how many handles each has.
func sentrySpaces(truth liveTruth, sid string) (spaces map[uint64]bool, handles map[uint64]int) {
	spaces, handles = make(map[uint64]bool), make(map[uint64]int)
	for _, p := range truth.Processes {
		if (p.Name != "svchost.exe" && p.Name != "spoolsv.exe") || p.SID != sid {
			continue
		}
		handles[p.PID] = p.Handles
		if p.UserDTB != 0 {
			spaces[p.UserDTB] = true
		} else {
			spaces[p.DTB] = true
		}
	}
	return spaces, handles
}

// TestSurrogate ends processes that only wait, by way of threads of services, at random
// moments, and expects those services to notice nothing and to keep no handle.
func TestSurrogate(t *testing.T) {
	for _, shadow := range []bool{false, true} {
		t.Run(fmt.Sprintf("shadow %v", shadow), func(t *testing.T) {
			u := newSurrogates(t, Options{Build: "10.0.19041", Seed: 6, KVAShadow: shadow})
			g := u.g
			spaces, handles := sentrySpaces(g.truth(), sidSystem)
			body := uint64(g.machine.b.at("_OBJECT_HEADER", 0).must("Body").Offset)
			for range 10 {
				pid := g.start("service.exe")
				header := g.truth().byPID(pid).EPROCESS - body
				u.with(spaces, func(d *gdbtest.Debugger, s *surrogate) {
					// The object's references and handles; user page tables do not show them.
					counts := func() (n [2]uint64) {
						if !shadow {
							raw := d.Read(header, 16)
							n = [2]uint64{binary.LittleEndian.Uint64(raw), binary.LittleEndian.Uint64(raw[8:])}
						}
						return n
					}
					before := counts()
					handle, status := u.openProcess(s, pid)
					if status != 0 {
						t.Fatalf("NtOpenProcess(%d): %#x", pid, status)
					}
					if n := counts(); !shadow && n != [2]uint64{before[0] + 1, before[1] + 1} {
						t.Errorf("with a handle more, process %d has %d references and handles; had %d", pid, n, before)
					}
					if status := s.call(u.terminate, handle, 0xc0000906); status != 0 {
						t.Fatalf("NtTerminateProcess(%#x): %#x", handle, status)
					}
					if status := s.call(u.closeHandle, handle); status != 0 {
						t.Fatalf("NtClose(%#x): %#x", handle, status)
					}
					if n := counts(); n != before {
						t.Errorf("with the handle closed, process %d has %d references and handles; had %d", pid, n, before)
					}
				})
				g.expect(fmt.Sprintf(`^EXIT %d service.exe 0xc0000906$`, pid))
			}
			g.heartbeats(3)
			after := g.truth()
			for pid, n := range handles {
				if p := after.byPID(pid); p == nil || p.State != "running" || p.Handles != n {
					t.Errorf("service %d, which had %d handles: %+v", pid, n, p)
				}
			}
		})
	}
}

// TestSurrogateIsRefused has services open what they may not, and what they may.
func TestSurrogateIsRefused(t *testing.T) {
	u := newSurrogates(t, Options{Build: "10.0.22000", Seed: 13})
	truth := u.g.truth()
	protected, user := u.g.start("MsMpEng.exe"), u.g.start("service.exe")
	pids := make(map[string]uint64) // of a service of each account
	for _, p := range truth.Processes {
		if p.Name == "svchost.exe" {
			pids[p.SID] = p.PID
		}
	}
	const denied, noSuchID = 0xc0000022, 0xc000000b
	for account, cases := range map[string][]struct{ pid, status uint64 }{
		sidSystem: {{protected, denied}, {4, denied}, {u.g.pidOf("csrss.exe"), denied}, {u.g.pidOf("lsass.exe"), 0}, {0x7ffffffc, noSuchID}, {0, noSuchID},
			{user, 0}, {pids[sidLocalService], 0}},
		sidLocalService: {{pids[sidSystem], denied}, {pids[sidNetworkService], denied}, {user, denied}, {protected, denied}, {pids[sidLocalService], 0}},
	} {
		spaces, _ := sentrySpaces(truth, account)
		for _, c := range cases {
			u.with(spaces, func(d *gdbtest.Debugger, s *surrogate) {
				handle, status := u.openProcess(s, c.pid)
				if status != c.status || (handle != 0) != (status == 0) {
					t.Errorf("%s: NtOpenProcess(%d) gives handle %#x, status %#x; want %#x", account, c.pid, handle, status, c.status)
				}
				if status == 0 {
					if status := s.call(u.closeHandle, handle); status != 0 {
						t.Errorf("%s: NtClose(%#x): %#x", account, handle, status)
					}
				}
			})
		}
	}
	u.g.heartbeats(2)
}
