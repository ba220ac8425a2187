// Package lock keeps processes out of each other's way with flock(2) on files. The kernel
// drops such a lock when its holder ends, however it ends, so none is ever stale. The
// files stay.
//
// It imports no other package of the project.
package lock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// ErrHeld reports a lock that another process, or another part of this one, has.
var ErrHeld = errors.New("held by another process")

// Lock is a lock that is held.
type Lock struct{ file *os.File }

// Try takes the lock at a path, whose directory it makes where it is missing, or fails
// with ErrHeld.
func Try(path string) (*Lock, error) {
	f, err := open(path)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = ErrHeld
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return &Lock{f}, nil
}

// How often a lock that is held is tried again.
const firstTry, lastTry = 5 * time.Millisecond, 250 * time.Millisecond

// Wait takes the lock at a path as soon as it is free, or fails when ctx ends.
func Wait(ctx context.Context, path string) (*Lock, error) {
	for wait := firstTry; ; wait = min(2*wait, lastTry) {
		l, err := Try(path)
		if !errors.Is(err, ErrHeld) {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("lock %s: %w", path, ctx.Err())
		case <-time.After(wait):
		}
	}
}

func open(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	// Not through a link that someone else has put there.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// File is the lock's file, for what its holder wants to tell the next one.
func (l *Lock) File() *os.File { return l.file }

// Release gives the lock back.
func (l *Lock) Release() {
	if l != nil {
		l.file.Close()
	}
}

// Locker is a lock as a sync.Locker, also between parts of this process. Where its context
// ends, or the lock cannot be had at all, Lock returns without it.
type Locker struct {
	ctx  context.Context
	path string
	mu   sync.Mutex
	held *Lock
}

// NewLocker makes a Locker of a path.
func NewLocker(ctx context.Context, path string) *Locker { return &Locker{ctx: ctx, path: path} }

// Lock implements sync.Locker.
func (l *Locker) Lock() {
	l.mu.Lock()
	l.held, _ = Wait(l.ctx, l.path)
}

// Unlock implements sync.Locker.
func (l *Locker) Unlock() {
	l.held.Release()
	l.held = nil
	l.mu.Unlock()
}
