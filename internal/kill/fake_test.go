package kill

import (
	"context"
	"encoding/binary"
	"errors"
	"sync"
	"testing"
	"time"

	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/ntguest"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/source/sourcetest"
	"vmav.dev/vmav/internal/winstruct"
)

// fakeHost is the laid-out test guest with a host that carries actions out as the
// module would on processes that run, and system calls as the guest's kernel would. It
// is for what cannot be made to happen on purpose in a real one: failures at every
// step. The real module and a running guest are tested in internal/e2e.
type fakeHost struct {
	*sourcetest.Guest
	t *testing.T
	m *ntguest.Machine
	g *introspect.Guest // reads through the host

	all []introspect.Process // as they were laid out

	mu     sync.Mutex
	runs   map[uint64]bool                                            // DTBs of processes that enter user mode
	fail   func(step string, a *source.Action) (*source.Event, error) // nil, nil: go on
	log    []string                                                   // steps carried out
	holds  []*fakeControl                                             // controls that hold a process, or did
	saved  map[uint64]*fakeThread
	opened map[uint64]uint64 // open handles of services: EPROCESS behind them
	words  map[uint64]uint64 // raw handle table entries that refer to a process
	off    struct {
		ExitTime   uint32          `win:"_EPROCESS.ExitTime"`
		ExitStatus uint32          `win:"_EPROCESS.ExitStatus"`
		Critical   winstruct.Field `win:"_EPROCESS.BreakOnTermination"`
		Threads    uint32          `win:"_EPROCESS.Pcb.ThreadListHead"`
		Entry      uint32          `win:"_KTHREAD.ThreadListEntry"`
		Teb        uint32          `win:"_KTHREAD.Teb"`
	}
}

// fakeThread is a parked thread.
type fakeThread struct {
	p    *introspect.Process
	gpr  [16]uint64
	park uint64
}

// laid is the guest that all fakes write over, and what was read of it.
var laid = sync.OnceValues(func() (*fakeHost, error) {
	m, err := ntguest.Lay(ntguest.Options{Build: "10.0.19041", Seed: 3, MemoryMiB: 256})
	if err != nil {
		return nil, err
	}
	h := &fakeHost{Guest: sourcetest.New(m, m.Memory), m: m}
	h.g, err = introspect.Open(context.Background(), h, winstruct.BuiltIn())
	return h, err
})

func newFake(t *testing.T) *fakeHost {
	t.Helper()
	base, err := laid()
	if err != nil {
		t.Fatal(err)
	}
	h := &fakeHost{Guest: sourcetest.New(base.m, base.m.Memory), t: t, m: base.m, runs: make(map[uint64]bool), saved: make(map[uint64]*fakeThread),
		opened: make(map[uint64]uint64), words: make(map[uint64]uint64)}
	h.g = base.g.WithSource(h)
	profile, err := winstruct.BuiltIn().Find(h.m.Build.Identity)
	if err == nil {
		err = winstruct.Compile(profile, &h.off)
	}
	if err != nil {
		t.Fatal(err)
	}
	h.all = h.procs()
	for _, p := range h.all {
		if p.Name != "csrss.exe" && p.Name != "services.exe" {
			continue
		}
		for handle := uint64(4); handle < 0x400; handle += 4 {
			if object, at, err := h.g.HandleObject(&p, handle); err == nil {
				h.words[object] = h.word(at.GPA)
			}
		}
	}
	return h
}

func (h *fakeHost) procs() []introspect.Process {
	h.t.Helper()
	procs, _, err := h.g.Processes(context.Background())
	if err != nil {
		h.t.Fatal(err)
	}
	return procs
}

// process is a process of a name that a handle of csrss or services refers to.
func (h *fakeHost) process(name string) *introspect.Process {
	h.t.Helper()
	for _, p := range h.all {
		if p.Name == name && h.words[p.EPROCESS] != 0 {
			return &p
		}
	}
	h.t.Fatalf("no process %s", name)
	return nil
}

// service is a process that may serve as surrogate.
func (h *fakeHost) services(n int) []*introspect.Process {
	var out []*introspect.Process
	for _, p := range h.all {
		if sid, err := h.g.UserSID(&p); err == nil && sid == introspect.LocalSystem && p.Name == "svchost.exe" && len(out) < n {
			out = append(out, &p)
		}
	}
	if len(out) != n {
		h.t.Fatalf("%d services", len(out))
	}
	return out
}

// WritePhys implements source.Writer.
func (h *fakeHost) WritePhys(p []byte, addr uint64) error {
	var access *source.AccessError
	switch err := h.ReadPhys(make([]byte, len(p)), addr); {
	case errors.As(err, &access):
		return &source.AccessError{Addr: addr, Size: len(p), Write: true, Err: access.Err}
	case err != nil:
		return err
	}
	h.Write(addr, p)
	return nil
}

func (h *fakeHost) word(gpa uint64) uint64 {
	var b [8]byte
	if err := h.ReadPhys(b[:], gpa); err != nil && !errors.Is(err, source.ErrGone) {
		h.t.Errorf("read %#x: %v", gpa, err)
	}
	return binary.LittleEndian.Uint64(b[:])
}

// put writes to a virtual address.
func (h *fakeHost) put(as *introspect.AddressSpace, va uint64, p []byte) {
	gpa, err := as.Translate(va)
	if err == nil {
		err = h.WritePhys(p, gpa)
	}
	if err != nil {
		h.t.Errorf("write %#x: %v", va, err)
	}
}

func (h *fakeHost) Control() (source.Control, error) {
	return &fakeControl{h: h, events: make(chan source.Event, 64), closed: make(chan struct{}), pending: make(map[uint64]*time.Timer)}, nil
}

// teb is the first thread's.
func (h *fakeHost) teb(p *introspect.Process) uint64 {
	as := h.g.Memory()
	read := func(va uint64) uint64 {
		gpa, err := as.Translate(va)
		if err != nil {
			h.t.Errorf("threads of %d: %v", p.PID, err)
			return 0
		}
		return h.word(gpa)
	}
	thread := read(p.EPROCESS+uint64(h.off.Threads)) - uint64(h.off.Entry)
	return read(thread + uint64(h.off.Teb))
}

// fakeControl is one control.
type fakeControl struct {
	h       *fakeHost
	events  chan source.Event
	once    sync.Once
	closed  chan struct{}
	mu      sync.Mutex
	pending map[uint64]*time.Timer
}

func (c *fakeControl) SetHooks(source.Hooks) error { return nil }

func (c *fakeControl) Event(ctx context.Context) (source.Event, error) {
	select {
	case ev := <-c.events:
		return ev, nil
	case <-c.closed:
		return source.Event{}, source.ErrClosed
	case <-ctx.Done():
		return source.Event{}, ctx.Err()
	}
}

func (c *fakeControl) Close() error {
	c.once.Do(func() { close(c.closed) })
	return nil
}

func (c *fakeControl) Cancel(cookie uint64) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	timer := c.pending[cookie]
	if timer == nil || !timer.Stop() {
		return false, nil
	}
	delete(c.pending, cookie)
	c.events <- source.Event{Kind: source.EventCancelled, Cookie: cookie}
	return true, nil
}

// later ends an action that nobody comes for.
func (c *fakeControl) later(a *source.Action) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pending[a.Cookie] = time.AfterFunc(a.Timeout, func() { c.events <- source.Event{Kind: source.EventExpired, Cookie: a.Cookie} })
}

// step names what an action is for.
func (h *fakeHost) step(a *source.Action) string {
	switch {
	case a.Flags&source.SaveContext != 0:
		return "park"
	case a.Kind == source.ActionHold:
		return "hold"
	case a.Kind == source.ActionRestore:
		return "restore"
	case a.Kind == source.ActionCapture:
		return "return"
	case a.Kind == source.ActionPageIn:
		return "page in"
	case a.Flags&source.OnlyParked == 0:
		return "direct"
	}
	return map[uint32]string{0x26: "open", 0x2c: "terminate", 0x0f: "close"}[h.number(a)]
}

func (h *fakeHost) owner(dtb uint64) *introspect.Process {
	for _, p := range h.all {
		if p.DTB == dtb {
			return &p
		}
	}
	return nil
}

func (h *fakeHost) number(a *source.Action) uint32 {
	p := h.owner(a.DTB)
	if th := h.saved[a.Saved]; th != nil {
		p = th.p
	}
	var code [longStub]byte
	if err := h.g.Space(p).Read(code[:], a.RIP); err != nil {
		h.t.Errorf("code at %#x: %v", a.RIP, err)
	}
	n, err := parseStub(code[:stubLength(code[:])])
	if err != nil {
		h.t.Errorf("redirected to %#x, where no system call is", a.RIP)
	}
	return n
}

func (c *fakeControl) Do(a *source.Action) error {
	h := c.h
	if _, err := h.Registers(context.Background()); errors.Is(err, source.ErrGone) {
		return err
	}
	step := h.step(a)
	if h.fail != nil {
		if ev, err := h.fail(step, a); err != nil {
			return err
		} else if ev != nil {
			ev.Cookie = a.Cookie
			c.events <- *ev
			return nil
		}
	}
	for _, gd := range a.Guards {
		if h.word(gd.GPA)&gd.Mask != gd.Value {
			c.events <- source.Event{Kind: source.EventCancelled, Reason: source.ReasonGuard, Cookie: a.Cookie}
			return nil
		}
	}
	ev := source.Event{Kind: source.EventApplied, Cookie: a.Cookie}
	switch step {
	case "park":
		if !h.runs[a.DTB] {
			c.later(a)
			return nil
		}
		p := h.owner(a.DTB)
		ev.TEB = h.teb(p)
		if t, err := h.g.ReadTEB(p, ev.TEB); err != nil {
			h.t.Error(err)
		} else {
			ev.GPR[source.RSP] = t.StackBase - 0x108
		}
		h.saved[a.Cookie] = &fakeThread{p: p, gpr: ev.GPR, park: a.RIP}
	case "direct":
		if !h.runs[a.DTB] {
			c.later(a)
			return nil
		}
		if h.number(a) != 0x2c || a.GPR[source.R10] != currentProcess || a.GPR[source.RDX] != uint64(Status) {
			h.t.Errorf("direct: %+v", a)
		}
		h.end(h.owner(a.DTB).EPROCESS, uint32(a.GPR[source.RDX]))
	case "open", "terminate", "close":
		h.call(step, h.saved[a.Saved], a)
	case "hold":
		h.mu.Lock()
		h.holds = append(h.holds, c)
		h.mu.Unlock()
	case "return":
		ev.GPR = h.saved[a.Saved].gpr
	case "restore":
		if h.saved[a.Saved] == nil {
			h.t.Error("restored twice")
		}
		delete(h.saved, a.Saved)
	}
	h.log = append(h.log, step)
	c.events <- ev
	return nil
}

// end has a process end.
func (h *fakeHost) end(eprocess uint64, status uint32) {
	as := h.g.Memory()
	h.put(as, eprocess+uint64(h.off.ExitStatus), binary.LittleEndian.AppendUint32(nil, status))
	h.put(as, eprocess+uint64(h.off.ExitTime), binary.LittleEndian.AppendUint64(nil, 0x1dcaa21c3a2d7c3))
}

// call is what the guest's kernel does.
func (h *fakeHost) call(step string, th *fakeThread, a *source.Action) {
	as := h.g.Space(th.p)
	var ret [8]byte
	if as.Read(ret[:], a.GPR[source.RSP]) != nil || binary.LittleEndian.Uint64(ret[:]) != th.park || a.GPR[source.RSP]%16 != 8 {
		h.t.Errorf("%s: the stack at %#x does not lead back", step, a.GPR[source.RSP])
	}
	handle := a.GPR[source.RCX]
	status := uint64(0)
	switch step {
	case "open":
		var cid [16]byte
		if as.Read(cid[:], a.GPR[source.R9]) != nil || a.GPR[source.RDX] != processTerminate {
			h.t.Errorf("open: %+v", a)
		}
		pid := binary.LittleEndian.Uint64(cid[:])
		for _, p := range h.all {
			if p.PID == pid {
				_, at, err := h.g.HandleObject(th.p, 4)
				if err != nil {
					h.t.Fatal(err)
				}
				h.opened[4] = p.EPROCESS
				_ = h.WritePhys(binary.LittleEndian.AppendUint64(nil, h.words[p.EPROCESS]), at.GPA)
				h.put(as, handle, binary.LittleEndian.AppendUint64(nil, 4))
			}
		}
	case "terminate":
		h.end(h.opened[handle], uint32(a.GPR[source.RDX]))
	case "close":
		if h.opened[handle] == 0 {
			status = 0xc0000008
		}
		delete(h.opened, handle)
	}
	th.gpr[source.RAX] = status
}

// paused is a domain that stands still.
type paused struct{}

func (paused) Paused() bool { return true }
