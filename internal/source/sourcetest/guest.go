// Package sourcetest is the one fake source.Source of the project's tests: a guest that
// does not run, in whose memory a test can write, and that a test can end.
//
// It imports package source and nothing else of the project.
package sourcetest

import (
	"context"
	"encoding/binary"
	"errors"
	"sync"

	"vmav.dev/vmav/internal/source"
)

// Memory is what a Guest reads where no test has written: a laid-out test guest, Bytes,
// or another source.
type Memory interface {
	// ReadPhys fills p from guest-physical address addr, or fails where no memory is.
	ReadPhys(p []byte, addr uint64) error
}

// Bytes is memory from guest-physical address 0 on.
type Bytes []byte

// ReadPhys implements Memory.
func (b Bytes) ReadPhys(p []byte, addr uint64) error {
	if addr > uint64(len(b)) || uint64(len(p)) > uint64(len(b))-addr {
		return source.ErrHole
	}
	copy(p, b[addr:])
	return nil
}

// Guest is a guest for tests. It implements source.Source and none of its optional
// capabilities, so that a test adds those that it wants. It is safe for concurrent use,
// but for its exported fields, which are set before it is read.
type Guest struct {
	// About is what Info returns.
	About source.Info
	// Regs is what Registers returns; a guest without them has source.ErrNoRegisters.
	Regs []source.Registers

	memory Memory
	ranges []source.Range

	mu    sync.RWMutex
	pages map[uint64]*[source.PageSize]byte // written, by frame number
	err   error                             // of every call, once it has ended
}

// New makes a guest of size bytes of RAM with the content of memory, which stays the
// caller's and is not written to. Where memory is nil nothing is in RAM but what Write
// puts there.
func New(memory Memory, size uint64) *Guest {
	g := &Guest{About: source.Info{Kind: "image", Name: "test"}, memory: memory, pages: make(map[uint64]*[source.PageSize]byte)}
	if size &^= source.PageSize - 1; size > 0 {
		g.ranges = []source.Range{{Size: size}}
	}
	return g
}

// ReadPhys implements source.Source.
func (g *Guest) ReadPhys(p []byte, addr uint64) error {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if g.err != nil {
		return g.err
	}
	for at := addr; len(p) > 0; {
		n := len(p)
		if len(g.pages) > 0 || g.memory == nil {
			n = min(n, int(source.PageSize-at%source.PageSize))
		}
		if page := g.pages[at/source.PageSize]; page != nil {
			copy(p[:n], page[at%source.PageSize:])
		} else if err := g.behind(p[:n], at); err != nil {
			return err
		}
		p, at = p[n:], at+uint64(n)
	}
	return nil
}

// behind reads what no test has written over.
func (g *Guest) behind(p []byte, addr uint64) error {
	if g.memory == nil {
		return &source.AccessError{Addr: addr, Size: len(p), Err: source.ErrHole}
	}
	err := g.memory.ReadPhys(p, addr)
	if err == nil || errors.Is(err, source.ErrGone) || errors.Is(err, source.ErrClosed) {
		return err
	}
	return &source.AccessError{Addr: addr, Size: len(p), Err: source.ErrHole}
}

// Write changes the guest's memory. Where there was none it is there from now on, in
// whole pages of zeros otherwise.
func (g *Guest) Write(addr uint64, p []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for len(p) > 0 {
		pfn := addr / source.PageSize
		page := g.pages[pfn]
		if page == nil {
			page = new([source.PageSize]byte)
			if g.behind(page[:], pfn*source.PageSize) != nil {
				clear(page[:])
			}
			g.pages[pfn] = page
		}
		n := copy(page[addr%source.PageSize:], p)
		p, addr = p[n:], addr+uint64(n)
	}
}

// Put writes the lower size bytes of v, eight at most, in the guest's byte order.
func (g *Guest) Put(addr, v uint64, size int) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	g.Write(addr, b[:size])
}

// Word is the 64-bit value at an address, 0 where there is no memory.
func (g *Guest) Word(addr uint64) uint64 {
	var b [8]byte
	if g.ReadPhys(b[:], addr) != nil {
		return 0
	}
	return binary.LittleEndian.Uint64(b[:])
}

// End is the end of the guest: from now on every call fails with source.ErrGone.
func (g *Guest) End() { g.fail(source.ErrGone) }

func (g *Guest) fail(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.err == nil {
		g.err = err
	}
}

// Ranges implements source.Source.
func (g *Guest) Ranges() []source.Range { return g.ranges }

// Registers implements source.Source.
func (g *Guest) Registers(context.Context) ([]source.Registers, error) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	switch {
	case g.err != nil:
		return nil, g.err
	case g.Regs == nil:
		return nil, source.ErrNoRegisters
	}
	return g.Regs, nil
}

// Info implements source.Source.
func (g *Guest) Info() source.Info { return g.About }

// Close implements source.Source.
func (g *Guest) Close() error {
	g.fail(source.ErrClosed)
	return nil
}
