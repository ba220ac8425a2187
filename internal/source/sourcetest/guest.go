// Package sourcetest has the fake source.Source of the project's tests: a guest that does
// not run, whose memory a test can write to, and which a test can end. It imports only
// package source.
package sourcetest

import (
	"context"
	"encoding/binary"
	"errors"
	"sync"

	"vmav.dev/vmav/internal/source"
)

// Memory is the content of a Guest where no test has written: a laid-out test guest, Bytes,
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

// Guest is a guest for tests. It implements source.Source and none of the optional
// capabilities; a test embeds it and adds those that it needs. It is safe for concurrent
// use, except that the exported fields must be set before it is read.
type Guest struct {
	// About is what Info returns.
	About source.Info
	// Regs is what Registers returns. If it is nil, Registers fails with
	// source.ErrNoRegisters.
	Regs []source.Registers

	memory Memory
	ranges []source.Range

	mu    sync.RWMutex
	pages map[uint64]*[source.PageSize]byte // written, by frame number
	err   error                             // of every call after End or Close
}

// New makes a guest with size bytes of RAM and the content of memory, which is never
// written to. If memory is nil, only what Write puts there is in RAM.
func New(memory Memory, size uint64) *Guest {
	g := &Guest{About: source.Info{Kind: source.KindImage, Name: "test"}, memory: memory, pages: make(map[uint64]*[source.PageSize]byte)}
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

// behind reads memory that no test has written to.
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

// Write changes the guest's memory. A page that was not in RAM becomes a page of zeros
// first.
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

// Put writes the lower size bytes of v in little-endian order; size is 8 at most.
func (g *Guest) Put(addr, v uint64, size int) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	g.Write(addr, b[:size])
}

// Word returns the 64-bit value at an address, or 0 if it cannot be read.
func (g *Guest) Word(addr uint64) uint64 {
	var b [8]byte
	if g.ReadPhys(b[:], addr) != nil {
		return 0
	}
	return binary.LittleEndian.Uint64(b[:])
}

// End ends the guest: every later call fails with source.ErrGone.
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
