package memhook

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmav.dev/vmav/internal/source"
)

// control implements source.Control on an attachment of its own.
type control struct {
	pid  int
	file *os.File
	conn interface{ Control(func(fd uintptr)) error }
	gone bool // EventGone was returned; only Event's caller uses it
}

// Control implements source.Controller. The control stays open after the Guest is closed. A
// control that nobody closes is closed by the garbage collector.
func (g *Guest) Control() (source.Control, error) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if g.closed {
		return nil, source.ErrClosed
	}
	fd, err := g.attach()
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, &OpError{Op: "open a control", PID: g.pid, Err: err}
	}
	// Non-blocking, so that the runtime's poller waits for events.
	f := os.NewFile(uintptr(fd), "kvm-memhook-vm")
	conn, err := f.SyscallConn()
	if err == nil {
		err = f.SetReadDeadline(time.Time{})
	}
	if err != nil {
		f.Close()
		return nil, &OpError{Op: "open a control", PID: g.pid, Err: fmt.Errorf("%w: its events cannot be waited for (%w)", ErrAPI, err)}
	}
	return &control{pid: g.pid, file: f, conn: conn}, nil
}

// call issues an ioctl on the control.
func (c *control) call(op string, req uintptr, arg unsafe.Pointer) error {
	var err error
	if cerr := c.conn.Control(func(fd uintptr) { _, err = ioctl(int(fd), req, arg) }); cerr != nil {
		return source.ErrClosed
	}
	if err != nil {
		return &OpError{Op: op, PID: c.pid, Err: guestError(err)}
	}
	return nil
}

// SetHooks implements source.Control.
func (c *control) SetHooks(h source.Hooks) error {
	if len(h.DTBs) > source.MaxWatches {
		return &OpError{Op: "set hooks", PID: c.pid, Err: fmt.Errorf("%d DTBs, %d are possible", len(h.DTBs), source.MaxWatches)}
	}
	arg := hooksArg{PeriodUs: uint32(h.Period.Microseconds())}
	for _, m := range []struct {
		set bool
		bit uint32
	}{{h.NewDTB, hookNewDTB}, {h.Switch, hookSwitch}, {h.User, hookUser}} {
		if m.set {
			arg.Mask |= m.bit
		}
	}
	var pin runtime.Pinner // the kernel is handed the list's address as a number
	defer pin.Unpin()
	if len(h.DTBs) > 0 {
		dtbs := slices.Clone(h.DTBs)
		pin.Pin(&dtbs[0])
		arg.Count, arg.DTB = uint32(len(dtbs)), uint64(uintptr(unsafe.Pointer(&dtbs[0])))
	}
	return c.call("set hooks", setHooks, unsafe.Pointer(&arg))
}

// Do implements source.Control.
func (c *control) Do(a *source.Action) error {
	if len(a.Guards) > source.MaxGuards {
		return &OpError{Op: a.Kind.String(), PID: c.pid, Err: fmt.Errorf("%d guards, %d are possible", len(a.Guards), source.MaxGuards)}
	}
	arg := actionArg{Type: uint32(a.Kind), Flags: uint32(a.Flags), Cookie: a.Cookie, DTB: a.DTB, UserDTB: a.UserDTB,
		TimeoutMs: milliseconds(a.Timeout), Set: uint32(a.Set), GPR: a.GPR, RIP: a.RIP, RFLAGS: a.RFLAGS,
		Address: a.Address, ErrorCode: a.ErrorCode, CS: uint32(a.CS), RIPMin: a.RIPMin, RIPMax: a.RIPMax, TEB: a.TEB,
		Saved: a.Saved, Guards: uint32(len(a.Guards))}
	for i, g := range a.Guards {
		arg.Guard[i] = guardArg(g)
	}
	return c.call(a.Kind.String(), addAction, unsafe.Pointer(&arg))
}

// milliseconds rounds up, so that a short time does not become none.
func milliseconds(d time.Duration) uint32 {
	return uint32(max(0, (d+time.Millisecond-1)/time.Millisecond))
}

// Cancel implements source.Control.
func (c *control) Cancel(cookie uint64) (bool, error) {
	arg := cancelArg{Cookie: cookie}
	err := c.call("cancel", cancel, unsafe.Pointer(&arg))
	return arg.Cancelled > 0, err
}

// Event implements source.Control.
func (c *control) Event(ctx context.Context) (source.Event, error) {
	var ev eventArg
	if c.gone {
		return source.Event{}, source.ErrGone
	}
	if err := c.file.SetReadDeadline(time.Time{}); err != nil {
		return source.Event{}, source.ErrClosed
	}
	interrupted := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(interrupted)
		_ = c.file.SetReadDeadline(time.Unix(1, 0)) // fails only when closed, which wakes the reader too
	})
	defer func() {
		if !stop() {
			<-interrupted // so that it does not end a later wait
		}
	}()
	n, err := c.file.Read(unsafe.Slice((*byte)(unsafe.Pointer(&ev)), unsafe.Sizeof(ev)))
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return source.Event{}, context.Cause(ctx)
	case errors.Is(err, os.ErrClosed):
		return source.Event{}, source.ErrClosed
	case errors.Is(err, io.EOF), errors.Is(err, unix.ESRCH):
		return source.Event{}, source.ErrGone // all that there was has been read
	case err != nil:
		return source.Event{}, &OpError{Op: "read an event", PID: c.pid, Err: err}
	case n != int(unsafe.Sizeof(ev)):
		return source.Event{}, &OpError{Op: "read an event", PID: c.pid, Err: fmt.Errorf("%d bytes, an event has %d", n, unsafe.Sizeof(ev))}
	}
	c.gone = ev.Type == uint32(source.EventGone)
	return eventOf(&ev), nil
}

func eventOf(e *eventArg) source.Event {
	return source.Event{Kind: source.EventKind(e.Type), VCPU: e.VCPU, Time: time.Duration(e.TimeNs), Cookie: e.Cookie, Lost: e.Lost,
		DTB: e.DTB, RIP: e.RIP, RFLAGS: e.RFLAGS, TEB: e.TEB, GPR: e.GPR, CPL: uint8(e.CPL & 3), CS: e.CS, Code64: e.Code64 != 0,
		Threads: e.Count, Reason: source.Reason(e.Reason)}
}

// Close implements source.Control. It waits for calls that are in progress, except Event:
// an Event that waits fails with ErrClosed.
func (c *control) Close() error {
	err := c.file.Close()
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}
