package inside

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"

	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/worker/wire"
)

// controlled is a guest that can be asked to read in pages. It implements
// source.Controller.
type controlled struct{ *remote }

// Control implements source.Controller. All controls of a worker are one control in the
// broker.
func (c controlled) Control() (source.Control, error) { return &control{lanes: c.lanes}, nil }

// control is a source.Control whose other end is in the broker.
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
	return c.lanes.ask(wire.AskPageIn, nil, text, nil)
}

// Cancel implements source.Control.
func (c *control) Cancel(cookie uint64) (pending bool, err error) {
	err = c.lanes.ask(wire.AskCancel, nil, binary.LittleEndian.AppendUint64(nil, cookie), func(_ *wire.Lane, f wire.Frame) error {
		pending = len(f.Args) == 1 && f.Args[0] != 0
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
		err = c.lanes.ask(wire.AskEvent, nil, nil, func(l *wire.Lane, f wire.Frame) error {
			if none = f.N == 0; none {
				return nil
			}
			return json.Unmarshal(l.Window[:f.N], &ev)
		})
		if err != nil || !none {
			return ev, err
		}
	}
}

// Close implements source.Control. The broker closes its control when the job ends.
func (c *control) Close() error { return nil }
