package kill

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/source"
)

// thread is a parked thread of a service. The module keeps its registers and gives them
// back. What is changed of its stack is kept here.
type thread struct {
	*candidate
	rec    *finding.Surrogate
	saved  uint64         // cookie under which the module keeps its context
	before source.Event   // its registers when it came
	block  introspect.TEB // when it came

	frame uint64             // RSP at the entry of a call; 0 until the stack was written to
	stack [frameSize]byte    // what was at frame before
	page  introspect.Mapping // of the frame
}

// Offsets in the frame that calls are made from. It begins at RSP at the entry of the called
// function (Microsoft, "x64 calling convention": return address, 32 bytes for the callee,
// RSP a multiple of 16 before the call).
const (
	frameReturn     = 0x00
	frameAttributes = 0x28 // OBJECT_ATTRIBUTES
	frameClientID   = 0x58
	frameHandle     = 0x68
	frameSize       = 0x80

	// stackDistance keeps away from what the thread itself may have below its RSP.
	// Windows defines no red zone; this is for code that has one of its own.
	stackDistance = 0x200
)

// frameBelow returns the address of the frame for a thread with the stack pointer rsp. It
// is 8 above a multiple of 16, and the whole frame is on one page.
func frameBelow(rsp uint64) uint64 {
	at := (rsp-stackDistance-frameSize-16)&^15 + 8
	if last := at + frameSize - 1; at/source.PageSize != last/source.PageSize {
		at = last&^(source.PageSize-1) - frameSize - 8
	}
	return at
}

func (t *thread) at(off uint64) uint64 { return t.frame + off }

// prepare checks the thread, saves the stack memory and writes the frame.
func (t *thread) prepare(ctx context.Context) error {
	t.guest.Refresh()
	var err error
	if t.block, err = t.suitable(); err != nil {
		return err
	}
	t.rec.Thread = t.block.TID
	frame := frameBelow(t.before.GPR[source.RSP])
	if frame < t.block.StackLimit || frame > t.before.GPR[source.RSP] {
		return fmt.Errorf("thread %d has no room on its stack", t.block.TID)
	}
	v, err := t.stackRange(ctx, frame)
	if err != nil {
		return err
	}
	if err := t.ensure(ctx, v, frame, frameSize, source.FaultUser|source.FaultWrite); err != nil {
		return fmt.Errorf("stack of thread %d: %w", t.block.TID, err)
	}
	if t.page, err = t.guest.UserSpace(t.p).Mapping(frame); err != nil {
		return err
	}
	if err := t.read(t.stack[:], frame); err != nil {
		return err
	}
	le := binary.LittleEndian
	var b [frameSize]byte
	le.PutUint64(b[frameReturn:], t.park)
	le.PutUint32(b[frameAttributes:], 0x30) // Length; all else is zero
	le.PutUint64(b[frameClientID:], t.attempt.target.PID)
	t.frame = frame
	return t.write(b[:], frame)
}

func (t *thread) stackRange(ctx context.Context, va uint64) (*introspect.VAD, error) {
	vads, _, err := t.guest.VADs(ctx, t.p)
	if err != nil {
		return nil, err
	}
	for i := range vads {
		if v := &vads[i]; va >= v.Start && va <= v.End {
			return v, nil
		}
	}
	return nil, fmt.Errorf("stack of thread %d: no range of its process is at %#x", t.block.TID, va)
}

// read reads from the thread's stack page or TEB.
func (t *thread) read(p []byte, va uint64) error {
	m, err := t.guest.UserSpace(t.p).Mapping(va)
	if err != nil {
		return err
	}
	return t.host.ReadPhys(p, m.GPA)
}

// errMoved reports a page that Windows removed while it was in use here.
var errMoved = errors.New("the page was taken away")

// write changes memory of the service, on one page. It checks the page before and after. A
// page that the guest has written to keeps its content when Windows removes it from the
// process. So a write at the same time is not lost, and the guard of the next action sees
// that the page has gone.
func (t *thread) write(p []byte, va uint64) error {
	as := t.guest.UserSpace(t.p)
	m, err := as.Mapping(va)
	if err != nil {
		return err
	}
	if !usable(m, source.FaultUser|source.FaultWrite) {
		return fmt.Errorf("write at %#x of process %d (%s): not writable there", va, t.p.PID, t.p.Name)
	}
	if err := t.host.WritePhys(p, m.GPA); err != nil {
		return err
	}
	after, err := as.Mapping(va)
	if err != nil || after.GPA != m.GPA {
		return fmt.Errorf("write at %#x of process %d (%s): %w", va, t.p.PID, t.p.Name, errMoved)
	}
	return nil
}

// call makes the thread call a system call with up to four arguments, and returns the
// status of the call. guards are conditions in addition to the one that the stack's page is
// there.
func (t *thread) call(ctx context.Context, name string, guards []source.Guard, args ...uint64) (uint32, error) {
	fail := func(err error) (uint32, error) {
		return 0, fmt.Errorf("%s by %s[%d]: %w", name, t.p.Name, t.p.PID, err)
	}
	a := t.on(source.ActionRedirect, ctx)
	a.Flags |= source.OnlyParked
	a.Saved = t.saved
	a.Guards = append([]source.Guard{t.page.Guard()}, guards...)
	a.Set = source.SetRIP | source.SetRFLAGS | 1<<source.RSP
	a.RIP, a.GPR[source.RSP] = t.calls[name].va, t.frame
	for i, reg := range []int{source.RCX, source.RDX, source.R8, source.R9}[:len(args)] {
		a.Set |= 1 << reg
		a.GPR[reg] = args[i]
	}
	if _, err := t.do(ctx, a); err != nil {
		return fail(err)
	}
	// The thread returns to where it was parked, with the status in RAX.
	a = t.on(source.ActionCapture, ctx)
	a.Flags |= source.OnlyParked
	a.Saved, a.Guards = t.saved, nil
	ev, err := t.do(ctx, a)
	if err != nil {
		t.rec.Calls = append(t.rec.Calls, finding.Call{Name: name, Status: 0xffffffff})
		return fail(fmt.Errorf("it has not returned: %w", err))
	}
	status := uint32(ev.GPR[source.RAX])
	t.rec.Calls = append(t.rec.Calls, finding.Call{Name: name, Status: finding.NTStatus(status)})
	return status, nil
}

// giveBack gives the thread its stack, TEB and registers back. It returns "equal", or what
// is known to be different.
func (t *thread) giveBack(ctx context.Context) string {
	err := t.unwrite()
	if rerr := t.resume(ctx); rerr != nil {
		err = errors.Join(err, rerr)
	}
	if err != nil {
		return err.Error()
	}
	return "equal"
}

// unwrite restores the stack and the TEB, and reads them to check.
func (t *thread) unwrite() error {
	if t.frame == 0 {
		return nil
	}
	if err := t.write(t.stack[:], t.frame); err != nil {
		return fmt.Errorf("give back its stack: %w", err)
	}
	var now [frameSize]byte
	if err := t.read(now[:], t.frame); err != nil {
		return fmt.Errorf("read back its stack: %w", err)
	}
	if !bytes.Equal(now[:], t.stack[:]) {
		return errors.New("its stack is not what it was")
	}
	t.guest.Refresh()
	teb, err := t.guest.ReadTEB(t.p, t.before.TEB)
	if err != nil {
		return err
	}
	// System calls do not change these two. If something has changed them, undo that.
	if teb.LastError != t.block.LastError || teb.LastStatus != t.block.LastStatus {
		if err := t.guest.RestoreTEB(t.block, func(b []byte, va uint64) error { return t.write(b, va) }); err != nil {
			return fmt.Errorf("give back its TEB: %w", err)
		}
		if teb, err = t.guest.ReadTEB(t.p, t.before.TEB); err != nil {
			return err
		}
	}
	if teb != t.block {
		return fmt.Errorf("its TEB is not what it was: %+v, was %+v", teb, t.block)
	}
	return nil
}

// resume gives the thread its registers back.
func (t *thread) resume(ctx context.Context) error {
	a := t.on(source.ActionRestore, ctx)
	a.Saved, a.Guards = t.saved, nil
	if _, err := t.do(ctx, a); err != nil {
		return fmt.Errorf("give back its registers: %w", err)
	}
	return nil
}
