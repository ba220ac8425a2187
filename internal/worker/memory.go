package worker

import (
	"bytes"
	"context"
	"errors"

	"vmav.dev/vmav/internal/sweep"
)

// A worker remembers through its broker. What the broker hands out and takes in is this
// guest's alone (sweep.Cache.Scope), secret and records: a worker that was taken over can
// deceive later sweeps of the guest that it came from, and no others. What the engine said
// of a content it cannot touch.

// scoped is a memory for one guest.
func scoped(m sweep.Memory, t sweep.Target) sweep.Memory {
	if c, ok := m.(*sweep.Cache); ok {
		return c.Scope(t.UUID + "/" + t.Name)
	}
	return m
}

// Session implements sweep.Memory.
func (e *engine) Session(context.Context, sweep.Scanner) sweep.Session { return e }

// Secret implements sweep.Session.
func (e *engine) Secret() [32]byte { return e.secret }

// Clean implements sweep.Session.
func (e *engine) Clean(sum [32]byte) bool {
	if e.local.Clean(sum) {
		return true
	}
	var yes bool
	err := e.lanes.ask(askClean, nil, sum[:], func(_ *lane, f frame) error { yes = len(f.args) == 1 && f.args[0] == 1; return nil })
	return err == nil && yes
}

// Recall implements sweep.Session.
func (e *engine) Recall(key [32]byte) (record []byte, ok bool) {
	if record, ok = e.local.Recall(key); ok {
		return record, true
	}
	err := e.lanes.ask(askRecall, nil, key[:], func(l *lane, f frame) error {
		if ok = len(f.args) == 1 && f.args[0] == 1; ok {
			record = bytes.Clone(l.window[:f.n])
		}
		return nil
	})
	return record, err == nil && ok
}

// Remember implements sweep.Session.
func (e *engine) Remember(key [32]byte, record []byte) {
	e.local.Remember(key, record)
	if len(record) <= windowSize {
		_ = e.lanes.ask(askRemember, func(l *lane) int { return copy(l.window, record) }, key[:], nil) // the next sweep takes longer
	}
}

// remembered answers questions about what is remembered.
func (v *served) remembered(q frame) (frame, error) {
	if len(q.args) != 32 {
		return frame{}, errors.New("a key of another size")
	}
	key := [32]byte(q.args)
	yes := func(b bool) []byte {
		if b {
			return []byte{1}
		}
		return []byte{0}
	}
	switch q.code {
	case askClean:
		return frame{args: yes(v.cache.Clean(key))}, nil
	case askRemember:
		v.cache.Remember(key, bytes.Clone(v.window[:q.n]))
		return frame{}, nil
	}
	record, ok := v.cache.Recall(key)
	if ok = ok && len(record) <= len(v.window); !ok {
		return frame{args: yes(false)}, nil
	}
	return frame{n: copy(v.window, record), args: yes(true)}, nil
}
