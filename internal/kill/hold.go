package kill

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/verdict"
)

const (
	holdSpan = MaxTimeout            // the module lets go of a process by itself then
	holdLook = 50 * time.Millisecond // how often a held process is looked at
)

// holdRenew is when a hold is renewed; tests have less time.
var holdRenew = holdSpan - time.Minute

// Held is a process that is held: no thread of it runs in user mode. It lasts until
// Release, and no longer than this program: the module lets go when the control of a
// client that has died is closed. While there is one, the guest's vCPUs are interrupted
// about once a millisecond. Its methods are safe for concurrent use.
//
// The module holds for ten minutes at most; a hold is renewed before, and between the
// old and the new one the process can run for some milliseconds.
type Held struct {
	attempt *attempt
	ctl     *control
	stop    context.CancelFunc
	done    chan struct{}

	mu  sync.Mutex
	err error
}

// errReleased ends a hold that was to end.
var errReleased = errors.New("released")

// Hold holds a process, under every guard of a kill. p is the process as it was when
// that was decided. The Held is nil where the process is not held; else the caller
// releases it, which the end of ctx does not.
func (e *Engine) Hold(ctx context.Context, p *introspect.Process, opt Options) (*finding.Act, *Held) {
	if opt.Timeout <= 0 {
		opt.Timeout = DefaultTimeout
	}
	opt.Timeout = min(opt.Timeout, MaxTimeout)
	begin := time.Now()
	k := &attempt{Engine: e, opt: opt, begin: begin, target: *p,
		rec: &finding.Kill{Domain: e.domain, Target: ProcessOf(p), DryRun: opt.DryRun, Requested: begin.UTC()}}
	act := func() *finding.Act {
		return &finding.Act{Domain: e.domain, Action: verdict.Hold, Target: &k.rec.Target, Outcome: k.rec.Outcome,
			DryRun: opt.DryRun, Requested: k.rec.Requested, Applied: k.rec.Applied}
	}
	if !k.check(ctx, p) {
		return act(), nil
	}
	if opt.DryRun {
		k.rec.Code = finding.OutcomePlanned
		return act(), nil
	}
	ctl, err := openControl(e.host)
	if err != nil {
		k.fail(finding.OutcomeFailed, "open control of the guest", err)
		return act(), nil
	}
	ctx, cancel := context.WithTimeout(ctx, opt.Timeout)
	defer cancel()
	events, err := k.hold(ctx, ctl)
	if err != nil {
		ctl.close()
		k.fail(finding.OutcomeFailed, "hold it", err)
		return act(), nil
	}
	k.rec.Code, k.rec.Applied = finding.OutcomeHeld, k.since()
	own, stop := context.WithCancel(context.Background())
	h := &Held{attempt: k, ctl: ctl, stop: stop, done: make(chan struct{})}
	go h.keep(own, events)
	return act(), h
}

// hold has the module hold the target, and waits until it does. What comes of the hold
// afterwards is in the channel.
func (k *attempt) hold(ctx context.Context, ctl *control) (<-chan source.Event, error) {
	events := make(chan source.Event, 2) // that it is applied, and that it has ended
	a := source.Action{Kind: source.ActionHold, DTB: k.target.DTB, UserDTB: k.target.UserDTB, Timeout: holdSpan, Guards: k.guards.All()}
	if _, err := ctl.start(a, events); err != nil {
		return nil, err
	}
	ev, err := ctl.wait(ctx, events, holdSpan)
	if err == nil && ev.Kind != source.EventApplied {
		err = notApplied(ev)
	}
	return events, err
}

// keep looks after a hold until it ends.
func (h *Held) keep(ctx context.Context, events <-chan source.Event) {
	defer close(h.done)
	defer func() { h.ctl.close() }() // lets go; the control is another after renew
	look := time.NewTicker(holdLook)
	defer look.Stop()
	renew := time.NewTimer(holdRenew)
	defer renew.Stop()
	end := func(err error) { h.mu.Lock(); h.err = err; h.mu.Unlock() }
	for {
		select {
		case <-ctx.Done():
			end(errReleased)
			return
		case ev := <-events:
			end(fmt.Errorf("the module let go of it: %w", notApplied(ev)))
			return
		case <-h.ctl.ended:
			end(source.ErrGone)
			return
		case <-look.C:
			// Somebody else may end it. Its tables are no tables any more then.
			if err := h.lives(); err != nil {
				end(err)
				return
			}
		case <-renew.C:
			next, err := h.renew(ctx)
			if err != nil && ctx.Err() != nil {
				continue
			}
			if err != nil {
				end(fmt.Errorf("hold it on: %w", err))
				return
			}
			events = next
			renew.Reset(holdRenew)
		}
	}
}

func (h *Held) lives() error {
	st, err := h.attempt.guest.Recheck(h.attempt.id)
	if err == nil && st.Exiting {
		err = errors.New("it has ended")
	}
	return err
}

// renew takes a second hold, by a control of its own, and gives the first up.
func (h *Held) renew(ctx context.Context) (<-chan source.Event, error) {
	ctl, err := openControl(h.attempt.host)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, h.attempt.opt.Timeout)
	defer cancel()
	events, err := h.attempt.hold(ctx, ctl)
	if err != nil {
		ctl.close()
		return nil, err
	}
	h.ctl.close()
	h.ctl = ctl
	return events, nil
}

// Target is the process that is held, as it was when that began.
func (h *Held) Target() finding.Process { return ProcessOf(&h.attempt.target) }

// Done is closed once the process is held no more.
func (h *Held) Done() <-chan struct{} { return h.done }

// Release lets go of the process, and says why it was not held any more, if so.
func (h *Held) Release() error {
	h.stop()
	<-h.done
	h.mu.Lock()
	defer h.mu.Unlock()
	if errors.Is(h.err, errReleased) {
		return nil
	}
	return fmt.Errorf("process %d (%s): %w", h.attempt.target.PID, h.attempt.target.Name, h.err)
}
