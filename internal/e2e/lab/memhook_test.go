package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"vmav.dev/vmav/internal/domain"
	"vmav.dev/vmav/internal/e2e/harness"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/source/memhook"
	"vmav.dev/vmav/internal/source/window"
)

// openBy opens a guest through one backend.
func openBy(t testing.TB, g *harness.Guest, b domain.Backend) (source.Source, *domain.Host, domain.Domain) {
	t.Helper()
	h, err := domain.Connect(harness.URI)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	h.SetBackend(b, nil)
	d, err := h.Find(g.Name)
	if err != nil {
		t.Fatal(err)
	}
	src, err := h.Open(context.Background(), d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src, h, d
}

func sourceBy(t testing.TB, g *harness.Guest, b domain.Backend) source.Source {
	t.Helper()
	src, _, _ := openBy(t, g, b)
	return src
}

// mapShared maps a guest's memory as a worker does that its source is shared with.
func mapShared(t testing.TB, src source.Source) *window.Guest {
	t.Helper()
	file, runs, err := src.(source.Sharer).Share()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	return window.Map(int(file.Fd()), runs)
}

// All of RAM through the module, by every way to read, is what QEMU's monitor saves of
// it; holes are errors by every way.
func TestMemoryIsWhatQEMUSaves(t *testing.T) {
	g := harness.Shared(t, "10.0.19041")
	hook, qemu := sourceBy(t, g, domain.Memhook), sourceBy(t, g, domain.QEMU)
	mapped := mapShared(t, hook)
	harness.Virsh(t, "suspend", g.Name)
	dir := harness.OpenDir(t)
	const chunk = 8 << 20
	want, got := make([]byte, chunk), make([]byte, chunk)
	total := uint64(0)
	for i, r := range qemu.Ranges() {
		file := filepath.Join(dir, fmt.Sprintf("ram%d", i))
		harness.Virsh(t, "qemu-monitor-command", g.Name, "--hmp", fmt.Sprintf("pmemsave %#x %#x \"%s\"", r.Start, r.Size, file))
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		for at := uint64(0); at < r.Size; at += chunk {
			n := min(chunk, r.Size-at)
			if _, err := f.ReadAt(want[:n], int64(at)); err != nil {
				t.Fatal(err)
			}
			if err := hook.ReadPhys(got[:n], r.Start+at); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got[:n], want[:n]) {
				t.Errorf("single reads differ in [%#x, +%#x)", r.Start+at, n)
			}
			clear(got)
			var reqs []source.Request
			for off := uint64(0); off < n; off += source.PageSize {
				reqs = append(reqs, source.Request{Addr: r.Start + at + off, P: got[off:min(n, off+source.PageSize)]})
			}
			if err := source.ReadBatch(hook, reqs); err != nil {
				t.Fatal(err)
			}
			for _, q := range reqs {
				if q.Err != nil {
					t.Fatal(q.Err)
				}
			}
			if !bytes.Equal(got[:n], want[:n]) {
				t.Errorf("batches differ in [%#x, +%#x)", r.Start+at, n)
			}
			if !mapped.Read(got[:n], r.Start+at) || !bytes.Equal(got[:n], want[:n]) {
				t.Errorf("shared memory differs in [%#x, +%#x)", r.Start+at, n)
			}
			total += n
		}
		f.Close()
		os.Remove(file)
	}
	harness.Virsh(t, "resume", g.Name)
	t.Logf("%d MiB equal", total>>20)
	if total < 500<<20 {
		t.Errorf("only %d bytes compared", total)
	}
	for _, addr := range []uint64{0xb0000000, 1 << 40, 1<<52 - source.PageSize} {
		p := make([]byte, 16)
		if err := hook.ReadPhys(p, addr); !errors.Is(err, source.ErrHole) {
			t.Errorf("read at %#x: %v", addr, err)
		}
		if err := hook.(source.Writer).WritePhys(p, addr); !errors.Is(err, source.ErrHole) {
			t.Errorf("write at %#x: %v", addr, err)
		}
		reqs := []source.Request{{Addr: addr, P: p}, {Addr: 0x1000, P: p}}
		if err := source.ReadBatch(hook, reqs); err != nil || !errors.Is(reqs[0].Err, source.ErrHole) || reqs[1].Err != nil {
			t.Errorf("batch at %#x: %v, %v, %v", addr, err, reqs[0].Err, reqs[1].Err)
		}
		if mapped.Read(p, addr) {
			t.Errorf("shared memory at %#x", addr)
		}
	}
}

// Closing while others read, and the end of the VM, are errors with a name.
func TestSourceEndsCleanly(t *testing.T) {
	g := harness.Start(t, "10.0.19041")
	src := sourceBy(t, g, domain.Memhook)
	regs, err := src.Registers(context.Background())
	if err != nil || len(regs) != 2 {
		t.Fatalf("%d vCPUs, %v", len(regs), err)
	}
	for _, r := range regs {
		if r.CR3 == 0 || r.EFER&(1<<10) == 0 || r.LSTAR>>47 == 0 || r.RIP == 0 {
			t.Errorf("vCPU %d: %+v", r.CPU, r)
		}
	}
	p := make([]byte, 64)
	if n := testing.AllocsPerRun(50, func() {
		if err := src.ReadPhys(p, 0x1000); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations a read", n)
	}
	mapped := mapShared(t, src)
	if !mapped.Read(p, 0x1000) {
		t.Error("shared memory cannot be read")
	}
	other := sourceBy(t, g, domain.Memhook)
	var wg sync.WaitGroup
	for range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			p := make([]byte, 3*source.PageSize)
			for {
				reqs := []source.Request{{Addr: 0x1000, P: p[:source.PageSize]}, {Addr: 0x200000, P: p[source.PageSize:]}}
				if err := source.ReadBatch(other, reqs); err != nil {
					if !errors.Is(err, source.ErrClosed) {
						t.Errorf("a read during Close: %v", err)
					}
					return
				}
				runtime.Gosched()
			}
		}()
	}
	ctl, err := other.(source.Controller).Control()
	if err != nil {
		t.Fatal(err)
	}
	wg.Add(1)
	go func() {
		defer wg.Done()
		if ev, err := ctl.Event(context.Background()); !errors.Is(err, source.ErrClosed) {
			t.Errorf("an event during Close: %+v, %v", ev, err)
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	second, err := other.(source.Controller).Control()
	if err != nil {
		t.Fatal(err)
	}
	if ev, err := second.Event(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("an event that nobody sent: %+v, %v", ev, err)
	}
	if err := errors.Join(other.Close(), other.Close(), ctl.Close(), ctl.Close()); err != nil {
		t.Errorf("close: %v", err)
	}
	wg.Wait()
	// The second session outlives its source, and hears of the end.
	harness.Virsh(t, "destroy", g.Name)
	if ev, err := second.Event(context.Background()); err != nil || ev.Kind != source.EventGone {
		t.Errorf("at the end: %+v, %v", ev, err)
	}
	if ev, err := second.Event(context.Background()); !errors.Is(err, source.ErrGone) {
		t.Errorf("after the end: %+v, %v", ev, err)
	}
	if err := second.Do(&source.Action{Kind: source.ActionCapture, Cookie: 1, DTB: 0x1000, Timeout: time.Second}); !errors.Is(err, source.ErrGone) {
		t.Errorf("an action after the end: %v", err)
	}
	second.Close()
	if err := src.ReadPhys(p, 0x1000); !errors.Is(err, source.ErrGone) {
		t.Errorf("a read after the end: %v", err)
	}
	reqs := []source.Request{{Addr: 0x1000, P: p}}
	if err := source.ReadBatch(src, reqs); !errors.Is(err, source.ErrGone) {
		t.Errorf("a batch after the end: %v", err)
	}
	if mapped.Read(p, 0x1000) {
		t.Error("shared memory can be read after the end")
	}
	if regs, err := src.Registers(context.Background()); !errors.Is(err, source.ErrGone) {
		t.Errorf("registers after the end: %v, %v", regs, err)
	}
}

// attached counts the module's descriptors that this process has.
func attached() (n int) {
	fds, _ := filepath.Glob("/proc/self/fd/*")
	for _, fd := range fds {
		if to, _ := os.Readlink(fd); strings.Contains(to, "kvm-memhook") {
			n++
		}
	}
	return n
}

// What is forgotten is closed, in time.
func TestForgottenSourceIsClosed(t *testing.T) {
	g := harness.Shared(t, "10.0.19041")
	pid := harness.PidOf("qemu-system", "guest="+g.Name)
	before := attached()
	func() {
		src, err := memhook.Open(context.Background(), g.Name, pid)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := src.Control(); err != nil {
			t.Fatal(err)
		}
	}()
	if n := attached(); n <= before {
		t.Fatalf("%d descriptors, had %d", n, before)
	}
	harness.WaitFor(t, "the end of what was forgotten", func() bool { runtime.GC(); return attached() == before })
}

// applied waits for the outcome of an action.
func applied(t *testing.T, ctl source.Control, cookie uint64) source.Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), labTimeout)
	defer cancel()
	for {
		ev, err := ctl.Event(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if ev.Cookie == cookie {
			if ev.Kind != source.EventApplied {
				t.Fatalf("action %d: %v, %v", cookie, ev.Kind, ev.Reason)
			}
			return ev
		}
	}
}

// A page that was taken out of a process comes back with the file's content, and the
// process goes on.
func TestPageIn(t *testing.T) {
	k := newKiller(t, harness.Start(t, "10.0.19041"))
	k.Say("pause", "CHURN 0")
	p := k.find(k.Start("burn.exe"))
	ctl, err := k.src.(source.Controller).Control()
	if err != nil {
		t.Fatal(err)
	}
	defer ctl.Close()
	vads, _, err := k.in.VADs(context.Background(), p)
	if err != nil {
		t.Fatal(err)
	}
	k.Say(fmt.Sprintf("trim %d", p.PID), "TRIMMED ")
	back := 0
	for i := range vads {
		v := &vads[i]
		if !v.Image() || !v.Executable() {
			continue
		}
		for va := v.Start; va < v.End && back < 8; va += source.PageSize {
			if _, err := k.in.UserSpace(p).Mapping(va); !errors.Is(err, introspect.ErrNotPresent) {
				continue
			}
			var want, own, got [source.PageSize]byte
			if k.in.ReadFile(want[:], v, va) != nil || k.in.Space(p).Read(own[:], va) == nil && own != want {
				continue // not in memory, or the process has written to it
			}
			back++
			cookie := uint64(100 + back)
			if err := ctl.Do(&source.Action{Kind: source.ActionPageIn, Cookie: cookie, DTB: p.DTB, UserDTB: p.UserDTB, Timeout: labTimeout,
				Address: va, ErrorCode: source.FaultUser}); err != nil {
				t.Fatal(err)
			}
			applied(t, ctl, cookie)
			var m introspect.Mapping
			harness.WaitFor(t, "the page", func() bool { m, err = k.in.UserSpace(p).Mapping(va); return err == nil })
			if err := k.src.ReadPhys(got[:], m.GPA); err != nil {
				t.Fatal(err)
			}
			if got != want {
				t.Errorf("the page at %#x of %s is not the file's", va, v.Path)
			}
		}
	}
	if back == 0 {
		t.Error("no page was out")
	}
	a := k.Number("progress", p.PID)
	harness.WaitFor(t, "progress", func() bool { return k.Number("progress", p.PID) != a })
	if c := k.Complaints(); len(c) > 0 {
		t.Errorf("the guest complains: %q", c)
	}
}

// A held process does nothing until it is released; another one goes on.
func TestHold(t *testing.T) {
	k := newKiller(t, harness.Shared(t, "10.0.19041"))
	k.Say("pause", "CHURN 0")
	held, free := k.find(k.Start("threads.exe")), k.find(k.Start("burn.exe"))
	ctl, err := k.src.(source.Controller).Control()
	if err != nil {
		t.Fatal(err)
	}
	defer ctl.Close()
	moves := func(pid uint64) func() bool {
		a := k.Number("progress", pid)
		return func() bool { return k.Number("progress", pid) != a }
	}
	harness.WaitFor(t, "progress before the hold", moves(held.PID))
	if err := ctl.Do(&source.Action{Kind: source.ActionHold, Cookie: 7, DTB: held.DTB, UserDTB: held.UserDTB, Timeout: 4 * labTimeout}); err != nil {
		t.Fatal(err)
	}
	applied(t, ctl, 7)
	a := k.Number("progress", held.PID)
	for range 3 {
		harness.WaitFor(t, "progress of another process", moves(free.PID))
		k.Expect("HB ")
		if b := k.Number("progress", held.PID); a != b {
			t.Errorf("it went from %d to %d while it was held", a, b)
		}
	}
	if pending, err := ctl.Cancel(7); err != nil || !pending {
		t.Errorf("release: %v, %v", pending, err)
	}
	harness.WaitFor(t, "progress after the release", moves(held.PID))
	if c := k.Complaints(); len(c) > 0 {
		t.Errorf("the guest complains: %q", c)
	}
}

// What reading costs, as ratios to copying memory of one's own: a figure for
// docs/PERFORMANCE.md, which asserts nothing.
func TestReadCost(t *testing.T) {
	if os.Getenv("VMAV_TEST_LONG") == "" {
		t.Skip("it tests nothing: make bench-kvm takes the figures")
	}
	g := harness.Start(t, "10.0.19041")
	hook, qemu := sourceBy(t, g, domain.Memhook), sourceBy(t, g, domain.QEMU)
	harness.Virsh(t, "suspend", g.Name)
	const base, size, batch = 0x1000000, 32 << 20, 128
	to, own := make([]byte, batch*source.PageSize), make([]byte, size)
	for i := range own {
		own[i] = byte(i)
	}
	batches := func(src source.Source) func() {
		reqs := make([]source.Request, batch)
		return func() {
			for at := uint64(base); at < base+size; at += uint64(len(to)) {
				for i := range reqs {
					reqs[i] = source.Request{Addr: at + uint64(i)*source.PageSize, P: to[i*source.PageSize:][:source.PageSize]}
				}
				if err := source.ReadBatch(src, reqs); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	singles := func(src source.Source) func() {
		return func() {
			for at := uint64(base); at < base+size; at += source.PageSize {
				if err := src.ReadPhys(to[:source.PageSize], at); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	mapped := mapShared(t, hook)
	var memcpy time.Duration
	for _, way := range []struct {
		name string
		do   func()
	}{
		{"memcpy of own memory", func() {
			for at := 0; at < size; at += len(to) {
				copy(to, own[at:])
			}
		}},
		{"shared memory, a batch at a time", func() {
			for at := uint64(base); at < base+size; at += uint64(len(to)) {
				if !mapped.Read(to, at) {
					t.Fatal("shared memory has holes")
				}
			}
		}},
		{"batches through the module", batches(hook)},
		{"pages one by one through the module", singles(hook)},
		{"batches through QEMU", batches(qemu)},
		{"pages one by one through QEMU", singles(qemu)},
	} {
		best := time.Duration(1 << 62)
		for range 4 { // the first faults pages in
			begin := time.Now()
			way.do()
			best = min(best, time.Since(begin))
		}
		if memcpy == 0 {
			memcpy = best
		}
		t.Logf("%-38s %6.2f × memcpy, %.0f pages/s", way.name, float64(best)/float64(memcpy), float64(size/source.PageSize)/best.Seconds())
	}
	harness.Virsh(t, "resume", g.Name)
}
