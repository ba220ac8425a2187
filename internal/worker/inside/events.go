package inside

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/scan"
	"vmav.dev/vmav/internal/worker/wire"
)

// events tells the broker of a scan while it goes on. It implements scan.Events. Findings
// and progress are sent at once. What was looked at and what was unread is sent at the end,
// in few messages.
type events struct {
	lanes   lanes
	content bool // findings are sent with their content

	told atomic.Int64 // when progress was last sent, in nanoseconds since 1970

	mu     sync.Mutex
	err    error // of the first finding that could not be reported
	unread []finding.Unread
	looked []byte
}

// Found implements scan.Events.
func (e *events) Found(_ context.Context, f scan.Found) {
	if err := e.report(f); err != nil {
		e.mu.Lock()
		if e.err == nil {
			e.err = err
		}
		e.mu.Unlock()
	}
}

func (e *events) report(f scan.Found) error {
	c := f.Content
	if !e.content {
		c = scan.Content{}
	}
	l := <-e.lanes
	defer func() { e.lanes <- l }()
	for _, part := range [][]byte{c.Scanned, c.Memory} {
		if _, err := sendContent(l, part, 0); err != nil {
			return err
		}
	}
	text, err := json.Marshal(wire.Found{Finding: f.Finding, Process: f.Process, Fidelity: c.Fidelity, Scanned: len(c.Scanned)})
	if err == nil && len(text) > wire.WindowSize { // the list of a file's conflicts can be long
		text, err = json.Marshal(wire.Found{Finding: f.Finding, Process: f.Process, Scanned: len(c.Scanned)})
	}
	if err != nil {
		return err
	}
	if len(text) > wire.WindowSize {
		return fmt.Errorf("report a finding of %d bytes: too large", len(text))
	}
	a, err := l.Call(wire.AskFound, copy(l.Window, text), binary.LittleEndian.AppendUint64(nil, uint64(len(c.Scanned)+len(c.Memory))))
	if err != nil {
		return err
	}
	return wire.ErrorOf(a)
}

// Unread implements scan.Events.
func (e *events) Unread(u finding.Unread) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.unread) < finding.MaxErrors {
		e.unread = append(e.unread, u)
	}
}

// Looked implements scan.Events.
func (e *events) Looked(p introspect.Identity, m scan.ImageKey, whole bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.looked) < wire.MaxLooked*wire.LookedSize {
		e.looked = wire.AppendLooked(e.looked, p, m, whole)
	}
}

// progressPeriod is how often a worker sends its progress. Each message costs the broker
// and the worker some time.
const progressPeriod = 20 * time.Millisecond

// Progress implements scan.Events. It sends the progress after the first image and the
// last, and at intervals in between.
func (e *events) Progress(p scan.Progress) {
	now, before := time.Now().UnixNano(), e.told.Load()
	if p.Done < p.Total && (now-before < int64(progressPeriod) || !e.told.CompareAndSwap(before, now)) {
		return
	}
	args := binary.LittleEndian.AppendUint32(nil, uint32(p.Done))
	args = binary.LittleEndian.AppendUint32(args, uint32(p.Total))
	// If the lane is broken, the next message on it fails too.
	_ = e.lanes.ask(wire.AskProgress, nil, args, nil)
}

// flush sends what was kept until the end of the scan.
func (e *events) flush() error {
	if err := e.lanes.sendUnread(e.unread); err != nil {
		return fmt.Errorf("report errors: %w", err)
	}
	const most = wire.WindowSize / wire.LookedSize * wire.LookedSize
	for all := e.looked; len(all) > 0; {
		n := min(len(all), most)
		if err := e.lanes.ask(wire.AskLooked, func(l *wire.Lane) int { return copy(l.Window, all[:n]) }, nil, nil); err != nil {
			return fmt.Errorf("report what was looked at: %w", err)
		}
		all = all[n:]
	}
	return nil
}

// sendUnread sends what could not be read, as much at a time as fits into the window.
func (ls lanes) sendUnread(all []finding.Unread) error {
	for len(all) > 0 {
		var text []byte
		n := len(all)
		for ; ; n = (n + 1) / 2 {
			var err error
			if text, err = json.Marshal(all[:n]); err != nil {
				return err
			}
			if len(text) <= wire.WindowSize || n == 1 {
				break
			}
		}
		if len(text) > wire.WindowSize { // a single one, with text of a guest
			one := finding.Unread{What: wire.Clip(all[0].What), Error: wire.Clip(all[0].Error)}
			all = append([]finding.Unread{one}, all[1:]...)
			continue
		}
		if err := ls.ask(wire.AskProblems, func(l *wire.Lane) int { return copy(l.Window, text) }, nil, nil); err != nil {
			return err
		}
		all = all[n:]
	}
	return nil
}
