// Package window is memory that two processes share: what a broker reads of a guest for
// a worker, and what the worker sends back. It is under internal/source because only
// there memory is mapped.
//
// What the other side can write is hostile: it changes while it is looked at. Copy once,
// then validate the copy.
package window

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Window is one mapping of shared memory. Its owner closes it.
type Window struct {
	mem  []byte
	file *os.File // nil where it was opened by descriptor
	once sync.Once
	err  error
}

// New makes a window of so many bytes. It can be neither grown nor shrunk by whoever has
// its descriptor: a page that went would fault in the other process.
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

// Open maps a window of so many bytes by its descriptor, which stays the caller's.
func Open(fd, size int) (*Window, error) {
	mem, err := unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map a window of %d bytes: %w", size, err)
	}
	return &Window{mem: mem}, nil
}

// File is the descriptor of a window that New made, to pass on. It stays the window's.
func (w *Window) File() *os.File { return w.file }

// Bytes is the shared memory, valid until Close.
func (w *Window) Bytes() []byte { return w.mem }

// Close ends the mapping. The caller has nobody use Bytes any more.
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
