// Package lock has locks between processes: flock(2) on files. The kernel releases such a
// lock when its holder ends, however it ends, so no lock is ever stale. The files stay.
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

// ErrHeld reports a lock that another process, or another part of this process, holds.
var ErrHeld = errors.New("held by another process")

// Lock is a lock that is held. Its holder releases it.
type Lock struct{ file *os.File }

// Try takes the lock at a path, or fails with ErrHeld. It makes the directory if it is
// missing.
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

// Interval between attempts to take a lock that is held.
const firstTry, lastTry = 5 * time.Millisecond, 250 * time.Millisecond

// Wait takes the lock at a path as soon as it is free. It fails when ctx ends.
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
	// Do not follow a link that someone else has put there.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// File returns the lock's file. The holder can leave a message for the next one in it.
func (l *Lock) File() *os.File { return l.file }

// Release releases the lock.
func (l *Lock) Release() {
	if l != nil {
		l.file.Close()
	}
}

// Locker is a lock as a sync.Locker. It also works between parts of this process. If its
// context ends, or the lock cannot be taken at all, Lock returns without it.
type Locker struct {
	ctx  context.Context
	path string
	mu   sync.Mutex
	held *Lock
}

// NewLocker makes a Locker for the lock at a path.
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
