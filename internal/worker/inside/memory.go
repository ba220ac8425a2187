package inside

import (
	"bytes"
	"context"

	"vmav.dev/vmav/internal/scan"
	"vmav.dev/vmav/internal/worker/wire"
)

// For implements scan.Memory.
func (e *engine) For(context.Context, scan.Engine) scan.Results { return e }

// Secret implements scan.Results.
func (e *engine) Secret() [32]byte { return e.secret }

// Clean implements scan.Results.
func (e *engine) Clean(sum [32]byte) bool {
	if e.local.Clean(sum) {
		return true
	}
	var yes bool
	err := e.lanes.ask(wire.AskClean, nil, sum[:], func(_ *wire.Lane, f wire.Frame) error { yes = len(f.Args) == 1 && f.Args[0] == 1; return nil })
	return err == nil && yes
}

// Recall implements scan.Results.
func (e *engine) Recall(key [32]byte) (record []byte, ok bool) {
	if record, ok = e.local.Recall(key); ok {
		return record, true
	}
	err := e.lanes.ask(wire.AskRecall, nil, key[:], func(l *wire.Lane, f wire.Frame) error {
		if ok = len(f.Args) == 1 && f.Args[0] == 1; ok {
			record = bytes.Clone(l.Window[:f.N])
		}
		return nil
	})
	return record, err == nil && ok
}

// Remember implements scan.Results.
func (e *engine) Remember(key [32]byte, record []byte) {
	e.local.Remember(key, record)
	if len(record) <= wire.WindowSize {
		// If this fails, the next scan only takes longer.
		_ = e.lanes.ask(wire.AskRemember, func(l *wire.Lane) int { return copy(l.Window, record) }, key[:], nil)
	}
}
