package sweep

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"vmav.dev/vmav/internal/lock"
)

// ErrUnderWay reports that another sweep is under way.
var ErrUnderWay = errors.New("another scan of all domains is under way")

// Turn is the right to sweep. No other sweep is under way until it is released.
type Turn struct {
	lock    *lock.Lock
	started time.Time
}

// Last describes the last finished sweep, for those that waited for it.
type Last struct {
	Started  time.Time `json:"started"`
	Finished time.Time `json:"finished"`
	Status   int       `json:"status"`  // exit status
	Options  string    `json:"options"` // identifies what the result depends on besides the guests
}

// Try takes the turn, or fails with ErrUnderWay. The turn is a lock on the file at path.
// The caller releases it.
func Try(path string) (*Turn, error) {
	l, err := lock.Try(path)
	if errors.Is(err, lock.ErrHeld) {
		return nil, ErrUnderWay
	}
	return turn(l, err)
}

// Wait waits for the turn. If a sweep with the same options began after the call, that
// sweep served the caller too: Wait returns it and no turn. Otherwise the caller releases
// the turn.
func Wait(ctx context.Context, path, options string) (*Turn, *Last, error) {
	came := time.Now()
	l, err := lock.Wait(ctx, path)
	if ctx.Err() != nil {
		if err == nil {
			l.Release()
		}
		return nil, nil, context.Cause(ctx)
	}
	t, err := turn(l, err)
	if err != nil {
		return nil, nil, err
	}
	text, err := io.ReadAll(io.NewSectionReader(l.File(), 0, 4096))
	var last Last
	if err == nil && json.Unmarshal(text, &last) == nil && last.Started.After(came) && last.Options == options {
		t.Release()
		return nil, &last, nil
	}
	return t, nil, nil
}

// turn makes a Turn of a lock, or explains the error of taking it.
func turn(l *lock.Lock, err error) (*Turn, error) {
	if err != nil {
		return nil, fmt.Errorf("%w: runtime_directory of the settings says where locks are", err)
	}
	return &Turn{lock: l, started: time.Now().UTC()}, nil
}

// Finished notes how the sweep ended, for those that wait. If it cannot, they sweep again.
func (t *Turn) Finished(status int, options string) {
	f := t.lock.File()
	text, err := json.Marshal(Last{t.started, time.Now().UTC(), status, options})
	if err == nil && f.Truncate(0) == nil {
		_, _ = f.WriteAt(text, 0)
	}
}

// Release ends the turn.
func (t *Turn) Release() { t.lock.Release() }
