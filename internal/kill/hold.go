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
	holdSpan = MaxTimeout            // after this time the module releases a process by itself
	holdLook = 50 * time.Millisecond // how often a held process is checked
)

// holdRenew is when a hold is renewed. Tests shorten it.
var holdRenew = holdSpan - time.Minute

// Held is a process that is held: no thread of it runs in user mode. The hold lasts until
// Release, and no longer than this program, because the module releases the process when
// the control of a dead client is closed. While a process is held, the guest's vCPUs are
// interrupted about once per millisecond. The methods are safe for concurrent use.
//
// The module holds a process for ten minutes at most. The hold is renewed before that.
// Between the old and the new hold the process can run for some milliseconds.
type Held struct {
	attempt *attempt
	ctl     *control
	stop    context.CancelFunc
	done    chan struct{}

	mu  sync.Mutex
	err error
}

// errReleased is the reason of a hold that ended as it should.
var errReleased = errors.New("released")

// Hold holds a process, under every guard of a kill. p is the process as it was when the
// hold was decided on. If the process is not held, the Held is nil. Otherwise the caller
// releases it; the end of ctx does not.
func (e *Engine) Hold(ctx context.Context, p *introspect.Process, opt Options) (*finding.Act, *Held) {
	k := e.newAttempt(p, opt)
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
	ctx, cancel := context.WithTimeout(ctx, k.opt.Timeout)
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

// hold asks the module to hold the target, and waits until it does. Later events of the
// hold go to the returned channel.
func (k *attempt) hold(ctx context.Context, ctl *control) (<-chan source.Event, error) {
	events := make(chan source.Event, 2) // the hold is applied, and the hold has ended
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
	defer func() { h.ctl.close() }() // releases the process; renew replaces the control
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
			// Somebody else may end the process. Its page tables are then used for other things.
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

// renew takes a second hold on a new control and gives up the first.
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

// Target returns the held process, as it was when the hold began.
func (h *Held) Target() finding.Process { return ProcessOf(&h.attempt.target) }

// Done returns a channel that is closed once the process is no longer held.
func (h *Held) Done() <-chan struct{} { return h.done }

// Release releases the process. If the hold had ended before, the error says why.
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
