package worker

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"vmav.dev/vmav/internal/pagein"
	"vmav.dev/vmav/internal/source"
)

// pageIn is what a worker may have a guest read in. It is the only action that is lent to
// workers; kills and holds are the broker's.
type pageIn struct {
	Pages, ProcessPages int
	Wait, Time          time.Duration
}

func (p *pageIn) options() pagein.Options {
	return pagein.Options{Pages: p.Pages, ProcessPages: p.ProcessPages, Wait: p.Wait, Time: p.Time}
}

// eventWait is how long the broker waits for an event before the worker asks again.
const eventWait = 50 * time.Millisecond

// controlled is a guest whose pages can be asked for. It implements source.Controller.
type controlled struct{ *guest }

// Control implements source.Controller. All sessions of a worker are one in the broker.
func (c controlled) Control() (source.Control, error) { return &control{lanes: c.lanes}, nil }

// control is a session of which the broker has the other end.
type control struct{ lanes lanes }

// SetHooks implements source.Control.
func (c *control) SetHooks(source.Hooks) error {
	return errors.New("hooks are not lent to workers")
}

// Do implements source.Control, for page-ins.
func (c *control) Do(a *source.Action) error {
	text, err := json.Marshal(a)
	if err != nil {
		return err
	}
	return c.lanes.ask(askPageIn, nil, text, nil)
}

// Cancel implements source.Control.
func (c *control) Cancel(cookie uint64) (pending bool, err error) {
	err = c.lanes.ask(askCancel, nil, binary.LittleEndian.AppendUint64(nil, cookie), func(_ *lane, f frame) error {
		pending = len(f.args) == 1 && f.args[0] != 0
		return nil
	})
	return pending, err
}

// Event implements source.Control.
func (c *control) Event(ctx context.Context) (ev source.Event, err error) {
	for {
		if err := ctx.Err(); err != nil {
			return ev, err
		}
		none := false
		err = c.lanes.ask(askEvent, nil, nil, func(l *lane, f frame) error {
			if none = f.n == 0; none {
				return nil
			}
			return json.Unmarshal(l.window[:f.n], &ev)
		})
		if err != nil || !none {
			return ev, err
		}
	}
}

// Close implements source.Control. The broker's end closes with the worker.
func (c *control) Close() error { return nil }

// acting is the broker's session of page-ins, made when the first is asked for.
func (s *session) acting() (source.Control, error) {
	host, ok := s.src.(source.Controller)
	if !ok || !s.opt.PageIn {
		return nil, errors.New("an action that it was not lent")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.control == nil {
		c, err := host.Control()
		if err != nil {
			return nil, &refused{err}
		}
		s.control = c
	}
	return s.control, nil
}

// refused is an error that a worker of ours can run into.
type refused struct{ error }

func (r *refused) Unwrap() error { return r.error }

// act answers questions about page-ins.
func (v *served) act(q frame) (frame, error) {
	c, err := v.acting()
	if r := (*refused)(nil); errors.As(err, &r) {
		return failure(err), nil
	}
	if err != nil {
		return frame{}, err
	}
	switch q.code {
	case askPageIn:
		var a source.Action
		if err := json.Unmarshal(q.args, &a); err != nil {
			return frame{}, fmt.Errorf("no action: %w", err)
		}
		if err := v.lent(&a); err != nil {
			return frame{}, err
		}
		err = c.Do(&a)
	case askCancel:
		if len(q.args) != 8 {
			return frame{}, errors.New("a cancellation of nothing")
		}
		var pending bool
		if pending, err = c.Cancel(binary.LittleEndian.Uint64(q.args)); err == nil && pending {
			return frame{args: []byte{1}}, nil
		}
	case askEvent:
		ctx, cancel := context.WithTimeout(v.ctx, eventWait)
		defer cancel()
		var ev source.Event
		v.waiting.Lock() // one caller at a time
		ev, err = c.Event(ctx)
		v.waiting.Unlock()
		if errors.Is(err, context.DeadlineExceeded) && v.ctx.Err() == nil {
			return frame{}, nil
		}
		if err == nil {
			return v.document(&ev, nil)
		}
	}
	if v.mark(err) != nil {
		return failure(err), nil
	}
	return frame{}, nil
}

// lent tells whether an action is one that workers are lent: a read of a page of user
// space, by whom the guest's own kernel decides.
func (v *served) lent(a *source.Action) error {
	const userSpace = 1 << 47
	most := v.opt.PageInOptions.Pages
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
	case asked > 4*most: // some come to nothing, and are asked for in another process
		return fmt.Errorf("more than %d page-ins", 4*most)
	}
	return nil
}
