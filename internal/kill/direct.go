package kill

import (
	"context"
	"errors"
	"fmt"
	"time"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/source"
)

const (
	// directShare is the part of a kill's time for which it waits for a thread of the
	// target before it looks for a surrogate, if surrogates are allowed. A thread that runs
	// at all comes within a few of the guest's clock ticks.
	directShare = 4
	directMax   = time.Second

	currentProcess = ^uint64(0) // the pseudo handle NtCurrentProcess
	userCode64     = 0x33       // selector of 64-bit user code on every x64 Windows
)

// direct redirects a thread of the target to NtTerminateProcess. If that was not possible,
// why says so; the outcome is then set only if the kill is over.
func (k *attempt) direct(ctx context.Context, ctl *control, lib *library) (why error) {
	e, v, err := k.targetEntry(ctx, lib)
	if err != nil {
		if errors.Is(err, source.ErrGone) {
			k.fail(finding.OutcomeFailed, "find its "+ntTerminateProcess, err)
		}
		return err
	}
	limit := k.opt.Timeout
	if len(k.opt.Policy.Surrogates) > 0 {
		limit = min(limit/directShare, directMax)
	}
	dctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	act := action{attempt: k, ctl: ctl, p: &k.target, guards: k.guards.All()}
	if err = act.ensure(dctx, v, e.va, e.length, source.FaultUser|source.FaultFetch); err == nil {
		a := act.on(source.ActionRedirect, dctx)
		a.Set = source.SetRIP | source.SetCode64 | source.SetRFLAGS | 1<<source.RCX | 1<<source.R10 | 1<<source.RDX
		a.RIP, a.CS = e.va, userCode64
		a.GPR[source.RCX], a.GPR[source.R10] = currentProcess, currentProcess
		a.GPR[source.RDX] = uint64(Status)
		_, err = act.do(dctx, a)
	}
	switch {
	case err == nil:
	case errors.Is(err, errGuard):
		if !k.guarded() {
			k.end(finding.OutcomeRefused, "%v", err)
		}
		return err
	case errors.Is(err, source.ErrGone):
		k.fail(finding.OutcomeFailed, "redirect a thread of it", err)
		return err
	default:
		if errors.Is(err, context.DeadlineExceeded) {
			err = errExpired
		}
		// Without surrogates the kill ends at the deadline, and surrogate sets the outcome.
		if errors.Is(ctx.Err(), context.Canceled) || ctx.Err() != nil && len(k.opt.Policy.Surrogates) > 0 {
			k.gaveUp(ctx, err)
		}
		return err
	}
	k.rec.Method, k.rec.Applied = finding.MethodDirect, k.since()
	if !k.awaitEnd(ctx) {
		k.end(finding.OutcomeFailed, "a thread of it was redirected to %s, but it has not ended in %v", ntTerminateProcess, k.opt.Timeout)
	}
	return nil
}

// targetEntry returns the stub of NtTerminateProcess in the target.
func (k *attempt) targetEntry(ctx context.Context, lib *library) (entry, *introspect.VAD, error) {
	v, err := findMapping(ctx, k.guest, &k.target, lib.control)
	if err != nil {
		return entry{}, nil, err
	}
	e, err := lib.entryOf(k.guest, &k.target, v, ntTerminateProcess)
	return e, v, err
}

// guarded sets the outcome after a guard forbade an action, if the target is the reason: it
// has ended, is another process, or is critical now. It returns false if the target is not
// the reason.
func (k *attempt) guarded() bool {
	st, err := k.guest.Recheck(k.id)
	switch {
	case errors.Is(err, introspect.ErrOtherProcess):
		k.end(finding.OutcomeRefused, "the process is not there any more: %v", err)
	case err != nil:
		k.fail(finding.OutcomeFailed, "read the process again", err)
	case st.ExitTime != 0:
		k.ended(st)
	case st.Critical:
		k.end(finding.OutcomeRefused, "it has become a critical process: Windows stops when it ends")
	case st.Exiting:
		k.end(finding.OutcomeExited, "its end has begun without us")
	default:
		return false
	}
	return true
}

// gaveUp sets the outcome of a kill whose time is over or whose caller has given up.
func (k *attempt) gaveUp(ctx context.Context, why error) {
	if errors.Is(context.Cause(ctx), context.Canceled) {
		k.end(finding.OutcomePending, "interrupted")
		return
	}
	k.end(finding.OutcomePending, "not done in %v: %v", k.opt.Timeout, why)
}

// action makes and runs actions on one process.
type action struct {
	*attempt
	ctl    *control
	p      *introspect.Process
	guards []source.Guard
	teb    uint64 // TEB of the thread that is to take page faults; 0 for any thread
}

// on returns an action that lives as long as ctx.
func (a *action) on(kind source.ActionKind, ctx context.Context) source.Action {
	return source.Action{Kind: kind, DTB: a.p.DTB, UserDTB: a.p.UserDTB, Timeout: remaining(ctx), Guards: a.guards}
}

// remaining returns how long ctx lives, within the bounds of an action's time.
func remaining(ctx context.Context) time.Duration {
	end, ok := ctx.Deadline()
	if !ok {
		return MaxTimeout
	}
	return min(max(time.Until(end), time.Millisecond), MaxTimeout)
}

// do runs an action and fails if it was not applied.
func (a *action) do(ctx context.Context, act source.Action) (source.Event, error) {
	ev, _, err := a.ctl.do(ctx, act)
	if err == nil && ev.Kind != source.EventApplied {
		err = notApplied(ev)
	}
	return ev, err
}

// ensure makes pages of a process present. A thread of the process takes a page fault, so
// that the guest itself gets the pages. code is the error code of the fault, which says for
// what access. v is the range that permits the access.
func (a *action) ensure(ctx context.Context, v *introspect.VAD, va uint64, length int, code uint32) error {
	if va < v.Start || uint64(length) > v.End-va+1 {
		return fmt.Errorf("page in %#x: it lies outside its range", va)
	}
	if code&source.FaultFetch != 0 && !v.Executable() || code&source.FaultWrite != 0 && !v.Writable() {
		return fmt.Errorf("page in %#x: its range does not permit that", va)
	}
	for page := va &^ (source.PageSize - 1); page < va+uint64(length); page += source.PageSize {
		if err := a.pageIn(ctx, max(page, va), code); err != nil {
			return fmt.Errorf("page in %#x: %w", page, err)
		}
	}
	return nil
}

// again is how long the guest has for one page before it is asked once more.
const again = 300 * time.Millisecond

func (a *action) pageIn(ctx context.Context, va uint64, code uint32) error {
	var asked time.Time
	for {
		m, err := a.guest.UserSpace(a.p).Mapping(va)
		switch {
		case err == nil && usable(m, code):
			return nil
		case err != nil && !errors.Is(err, introspect.ErrNotPresent):
			return err
		case err == nil && code&source.FaultWrite == 0:
			return errors.New("it is mapped, but not for that")
		}
		if time.Since(asked) > again {
			act := a.on(source.ActionPageIn, ctx)
			act.Address, act.ErrorCode = va, code
			if a.teb != 0 {
				act.Flags, act.TEB = source.OfTEB, a.teb
			}
			if _, err := a.do(ctx, act); err != nil {
				return err
			}
			asked = time.Now()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
}

// pteDirty is the bit of a page table entry that says that the page was written to. Only
// such a page keeps what is written into it from outside when Windows removes it from the
// process.
const pteDirty = 1 << 6

// usable reports whether a page is present for an access with an error code.
func usable(m introspect.Mapping, code uint32) bool {
	return m.User && (code&source.FaultFetch == 0 || m.Executable) &&
		(code&source.FaultWrite == 0 || m.Writable && m.PTE&pteDirty != 0)
}
