package kill

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"vmav.dev/vmav/internal/source"
)

// slack is how late an outcome may be, beyond its action's own time, before the module is
// assumed to have lost it.
const slack = 5 * time.Second

// errSilent reports an action without an outcome.
var errSilent = errors.New("the module reported no outcome")

// control passes the events of one source.Control to those who wait for them.
type control struct {
	ctl  source.Control
	stop context.CancelFunc

	mu     sync.Mutex
	last   uint64              // cookie of the last action
	to     map[uint64]listener // by cookie
	err    error               // why there are no more events
	ended  chan struct{}       // closed when there are no more events
	reader sync.WaitGroup
}

// listener waits for the events of an action.
type listener struct {
	events chan<- source.Event
	again  bool // after the event that the action is applied comes another one, of its end
}

func openControl(host source.Controller) (*control, error) {
	ctl, err := host.Control()
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	c := &control{ctl: ctl, stop: stop, to: make(map[uint64]listener), ended: make(chan struct{})}
	c.reader.Add(1)
	go func() {
		defer c.reader.Done()
		c.read(ctx)
	}()
	return c, nil
}

func (c *control) read(ctx context.Context) {
	defer close(c.ended)
	for {
		ev, err := c.ctl.Event(ctx)
		if err == nil && ev.Kind == source.EventGone {
			err = source.ErrGone
		}
		c.mu.Lock()
		if err != nil {
			c.err = err
			c.mu.Unlock()
			return
		}
		to := c.to[ev.Cookie]
		if !to.again || ev.Kind != source.EventApplied {
			delete(c.to, ev.Cookie)
		}
		c.mu.Unlock()
		if to.events != nil {
			to.events <- ev // there is room: an action has one event, a hold two
		}
	}
}

// close ends the control. The module cancels what is pending, and gives back each context
// that was not given back.
func (c *control) close() {
	c.stop()
	c.ctl.Close() // fails only where it is closed already
	c.reader.Wait()
}

// start starts an action under a new cookie. Its outcome goes to a channel that has room
// for it; the channel of a hold also has room for the event of its end. No other action of
// this package is for more than one thread.
func (c *control) start(a source.Action, to chan<- source.Event) (cookie uint64, err error) {
	c.mu.Lock()
	c.last++
	a.Cookie = c.last
	c.to[a.Cookie] = listener{to, a.Kind == source.ActionHold}
	c.mu.Unlock()
	if err := c.ctl.Do(&a); err != nil {
		c.mu.Lock()
		delete(c.to, a.Cookie)
		c.mu.Unlock()
		return 0, err
	}
	return a.Cookie, nil
}

// do starts an action and waits for its outcome. If ctx ends first, do cancels the action.
// If it is too late for that, its outcome counts.
func (c *control) do(ctx context.Context, a source.Action) (source.Event, uint64, error) {
	to := make(chan source.Event, 1)
	cookie, err := c.start(a, to)
	if err != nil {
		return source.Event{}, 0, err
	}
	ev, err := c.wait(ctx, to, a.Timeout)
	if err != nil && ctx.Err() != nil {
		pending, cerr := c.ctl.Cancel(cookie)
		switch {
		case cerr != nil:
			err = cerr
		case !pending:
			ev, err = c.wait(context.WithoutCancel(ctx), to, 0)
		}
	}
	return ev, cookie, err
}

// wait waits for one event, for timeout and slack at most.
func (c *control) wait(ctx context.Context, from <-chan source.Event, timeout time.Duration) (source.Event, error) {
	late := time.NewTimer(timeout + slack)
	defer late.Stop()
	select {
	case ev := <-from:
		return ev, nil
	default:
	}
	select {
	case ev := <-from:
		return ev, nil
	case <-ctx.Done():
		return source.Event{}, ctx.Err()
	case <-c.ended:
		select {
		case ev := <-from: // the event came before the end
			return ev, nil
		default:
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		return source.Event{}, c.err
	case <-late.C:
		return source.Event{}, errSilent
	}
}

// notApplied says why an action with the outcome ev was not applied.
func notApplied(ev source.Event) error {
	switch ev.Kind {
	case source.EventExpired:
		return errExpired
	case source.EventCancelled:
		if ev.Reason == source.ReasonGuard {
			return errGuard
		}
		return errors.New(ev.Reason.String())
	}
	return fmt.Errorf("the module reported %q", ev.Kind)
}

var (
	// errExpired reports an action for which no thread came in time.
	errExpired = errors.New("no thread of it was in user mode in that time")
	// errGuard reports an action that a guard forbade at the moment of delivery.
	errGuard = errors.New("a condition did not hold in the moment of delivery")
)
