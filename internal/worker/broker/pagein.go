package broker

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"vmav.dev/vmav/internal/pagein"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/worker/wire"
)

// eventWait bounds how long the broker waits for an event before the worker asks again.
const eventWait = 50 * time.Millisecond

// pageInControl returns the broker's control of page-ins. It opens the control on the first
// call.
func (j *job) pageInControl() (source.Control, error) {
	host, ok := j.src.(source.Controller)
	if !ok || j.req.PageIn == nil {
		return nil, errors.New("an action that it was not lent")
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.control == nil {
		c, err := host.Control()
		if err != nil {
			return nil, &refused{err}
		}
		j.control = c
	}
	return j.control, nil
}

// refused is an error that a worker of ours can cause.
type refused struct{ error }

func (r *refused) Unwrap() error { return r.error }

// act answers questions about page-ins.
func (v *laneServer) act(q wire.Frame) (wire.Frame, error) {
	c, err := v.pageInControl()
	if r := (*refused)(nil); errors.As(err, &r) {
		return wire.Failure(err), nil
	}
	if err != nil {
		return wire.Frame{}, err
	}
	switch q.Code {
	case wire.AskPageIn:
		var a source.Action
		if err := json.Unmarshal(q.Args, &a); err != nil {
			return wire.Frame{}, fmt.Errorf("no action: %w", err)
		}
		if err := v.checkAction(&a); err != nil {
			return wire.Frame{}, err
		}
		err = c.Do(&a)
	case wire.AskCancel:
		if len(q.Args) != 8 {
			return wire.Frame{}, errors.New("a cancellation of nothing")
		}
		var pending bool
		if pending, err = c.Cancel(binary.LittleEndian.Uint64(q.Args)); err == nil && pending {
			return wire.Frame{Args: []byte{1}}, nil
		}
	case wire.AskEvent:
		ctx, cancel := context.WithTimeout(v.ctx, eventWait)
		defer cancel()
		var ev source.Event
		v.waiting.Lock() // only one caller at a time
		ev, err = c.Event(ctx)
		v.waiting.Unlock()
		if errors.Is(err, context.DeadlineExceeded) && v.ctx.Err() == nil {
			return wire.Frame{}, nil
		}
		if err == nil {
			return v.document(&ev, nil)
		}
	}
	if v.markFatal(err) != nil {
		return wire.Failure(err), nil
	}
	return wire.Frame{}, nil
}

// checkAction fails if an action is not one that workers may ask for: a read of a page of
// user space, which the guest's own kernel decides on.
func (v *laneServer) checkAction(a *source.Action) error {
	const userSpace = 1 << 47
	most := v.req.PageIn.Pages
	if most <= 0 {
		most = pagein.DefaultPages
	}
	v.mu.Lock()
	v.pageIns++
	asked := v.pageIns
	v.mu.Unlock()
	switch {
	case a.Kind != source.ActionPageIn || a.ErrorCode != source.FaultUser || a.Flags != 0 || a.Set != 0 || a.Address >= userSpace:
		return fmt.Errorf("an action that it was not lent: %v", a.Kind)
	case len(a.Guards) == 0 || len(a.Guards) > source.MaxGuards:
		return fmt.Errorf("a page-in with %d guards", len(a.Guards))
	case asked > 4*most: // some fail, and are asked for again in another process
		return fmt.Errorf("more than %d page-ins", 4*most)
	}
	return nil
}
