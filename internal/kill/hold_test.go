package kill

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/verdict"
)

// released tells whether a control that holds has been closed.
func released(c *fakeControl) bool {
	select {
	case <-c.closed:
		return true
	default:
		return false
	}
}

func ended(t *testing.T, h *Held) {
	t.Helper()
	select {
	case <-h.Done():
	case <-time.After(time.Minute):
		t.Fatal("it is held for ever")
	}
}

func TestHoldLastsUntilItIsReleased(t *testing.T) {
	h := newFake(t)
	p := h.process("notepad.exe")
	ctx, cancel := context.WithCancel(context.Background())
	rec, held := h.engine().Hold(ctx, p, options())
	cancel() // that of the decision, not of the hold
	if rec.Code != finding.OutcomeHeld || rec.Action != verdict.Hold || rec.Target.PID != p.PID || rec.Applied == nil || held == nil {
		t.Fatalf("%+v", rec)
	}
	if held.Target().PID != p.PID || len(h.holds) != 1 || released(h.holds[0]) {
		t.Errorf("%+v", held.Target())
	}
	if err := held.Release(); err != nil || !released(h.holds[0]) {
		t.Errorf("release: %v", err)
	}
	if err := held.Release(); err != nil {
		t.Errorf("released twice: %v", err)
	}
}

// A hold carries the guards of its process, so that the module lets go of another one.
func TestHoldIsGuarded(t *testing.T) {
	h := newFake(t)
	var guards int
	h.fail = func(step string, a *source.Action) (*source.Event, error) { guards = len(a.Guards); return nil, nil }
	_, held := h.engine().Hold(context.Background(), h.process("notepad.exe"), options())
	if held == nil || guards < 3 {
		t.Fatalf("%d guards", guards)
	}
	if err := held.Release(); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"csrss.exe", "lsass.exe", "System"} {
		for _, p := range h.all {
			if p.Name != name {
				continue
			}
			if rec, held := h.engine().Hold(context.Background(), &p, options()); rec.Code != finding.OutcomeRefused || held != nil {
				t.Errorf("%s: %+v", name, rec)
			}
		}
	}
	if len(h.holds) != 1 {
		t.Errorf("%d holds", len(h.holds))
	}
	opt := options()
	opt.Domain = paused{}
	if rec, _ := h.engine().Hold(context.Background(), h.process("notepad.exe"), opt); rec.Code != finding.OutcomeRefused ||
		!strings.Contains(rec.Reason, "paused") {
		t.Errorf("%+v", rec)
	}
	opt = options()
	opt.DryRun = true
	if rec, held := h.engine().Hold(context.Background(), h.process("notepad.exe"), opt); rec.Code != finding.OutcomePlanned || held != nil ||
		len(h.holds) != 1 {
		t.Errorf("%+v", rec)
	}
}

func TestHoldsThatFail(t *testing.T) {
	for _, tt := range []struct {
		name string
		ev   *source.Event
		err  error
		want finding.Code
		why  string
	}{
		{"a guard", &source.Event{Kind: source.EventCancelled, Reason: source.ReasonGuard}, nil, finding.OutcomeFailed, "condition"},
		{"expired", &source.Event{Kind: source.EventExpired}, nil, finding.OutcomeFailed, "no thread"},
		{"refused", nil, errors.New("no room"), finding.OutcomeFailed, "no room"},
		{"gone", nil, source.ErrGone, finding.OutcomeGone, "went away"},
	} {
		h := newFake(t)
		h.fail = func(string, *source.Action) (*source.Event, error) { return tt.ev, tt.err }
		rec, held := h.engine().Hold(context.Background(), h.process("notepad.exe"), options())
		if rec.Code != tt.want || !strings.Contains(rec.Reason, tt.why) || held != nil {
			t.Errorf("%s: %+v", tt.name, rec)
		}
	}
}

// What ends a hold before its owner does is said.
func TestHoldsThatEnd(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(h *fakeHost, eprocess uint64)
		why  string
	}{
		{"another ends it", func(h *fakeHost, eprocess uint64) { h.end(eprocess, 1) }, "it has ended"},
		{"the module lets go", func(h *fakeHost, _ uint64) {
			h.holds[0].events <- source.Event{Kind: source.EventCancelled, Reason: source.ReasonMoved, Cookie: 1}
		}, "moved by its VMM"},
		{"the guest goes", func(h *fakeHost, _ uint64) { h.holds[0].events <- source.Event{Kind: source.EventGone} }, source.ErrGone.Error()},
	} {
		h := newFake(t)
		p := h.process("notepad.exe")
		_, held := h.engine().Hold(context.Background(), p, options())
		if held == nil {
			t.Fatal("not held")
		}
		tt.end(h, p.EPROCESS)
		ended(t, held)
		if err := held.Release(); err == nil || !strings.Contains(err.Error(), tt.why) || !released(h.holds[0]) {
			t.Errorf("%s: %v, want %s", tt.name, err, tt.why)
		}
	}
}

// The module's longest hold is not the end: a new one is there before the old one goes.
func TestHoldIsRenewed(t *testing.T) {
	defer func(d time.Duration) { holdRenew = d }(holdRenew)
	holdRenew = 20 * time.Millisecond
	h := newFake(t)
	_, held := h.engine().Hold(context.Background(), h.process("notepad.exe"), options())
	if held == nil {
		t.Fatal("not held")
	}
	at := func(i int) *fakeControl {
		h.mu.Lock()
		defer h.mu.Unlock()
		if i < len(h.holds) {
			return h.holds[i]
		}
		return nil
	}
	for i := 1; i < 4; i++ {
		for at(i) == nil {
			time.Sleep(time.Millisecond)
		}
		for !released(at(i - 1)) {
			time.Sleep(time.Millisecond)
		}
	}
	if err := held.Release(); err != nil {
		t.Error(err)
	}
	for i := 0; at(i) != nil; i++ {
		if !released(at(i)) {
			t.Errorf("hold %d was left", i)
		}
	}
}
