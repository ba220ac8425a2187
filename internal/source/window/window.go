// Package window provides memory that two processes share: in it a broker passes the guest
// memory that it reads for a worker, and a worker passes its answers. It is below
// internal/source because memory may only be mapped there. It imports only package source.
//
// The other side can change the shared memory at any time. Copy once, then validate the
// copy.
package window

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Window is one mapping of shared memory. Whoever made or opened it closes it.
type Window struct {
	mem  []byte
	file *os.File // nil where it was opened by descriptor
	once sync.Once
	err  error
}

// New makes a window of size bytes. Nobody who gets its descriptor can change the size,
// since a missing page would fault in the other process.
func New(size int) (*Window, error) {
	fd, err := unix.MemfdCreate("vmav-window", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("make a window of %d bytes: %w", size, err)
	}
	f := os.NewFile(uintptr(fd), "memfd:vmav-window")
	if err = unix.Ftruncate(fd, int64(size)); err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	}
	var w *Window
	if err == nil {
		w, err = Open(fd, size)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("make a window of %d bytes: %w", size, err)
	}
	w.file = f
	return w, nil
}

// Open maps a window of size bytes by its descriptor. The descriptor stays the caller's.
func Open(fd, size int) (*Window, error) {
	mem, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map a window of %d bytes: %w", size, err)
	}
	return &Window{mem: mem}, nil
}

// File returns the file of a window that New made, to pass to another process. The window
// closes it. It is nil for a window from Open.
func (w *Window) File() *os.File { return w.file }

// Bytes returns the shared memory. It is valid until Close.
func (w *Window) Bytes() []byte { return w.mem }

// Close ends the mapping. Nobody may use the result of Bytes afterwards.
func (w *Window) Close() error {
	w.once.Do(func() {
		w.err = unix.Munmap(w.mem)
		w.mem = nil
		if w.file != nil {
			w.file.Close()
		}
	})
	return w.err
}
