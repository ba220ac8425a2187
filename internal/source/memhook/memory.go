package memhook

import (
	"errors"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmav.dev/vmav/internal/source"
)

// Single reads use READ. Batches copy from the mapping, and use READ for what the mapping
// does not have. READ costs a system call but tells why a range fails; a page of the
// mapping that was touched before costs none (docs/PERFORMANCE.md).

// vectors has the arguments of one READ or WRITE. They come from a pool, because a read
// must not allocate. Pointers to the buffers are kept beside their addresses, so that the
// buffers are on the heap and stay in place while the kernel uses them.
type vectors struct {
	rw     rwArg
	info   infoArg
	ranges [maxRanges]rangeArg
	bufs   [maxRanges]*byte
	which  [maxRanges]int // request of a batch
}

var vectorPool = sync.Pool{New: func() any { return new(vectors) }}

func (v *vectors) set(i int, p []byte, addr uint64) {
	v.bufs[i] = &p[0]
	v.ranges[i] = rangeArg{GPA: addr, Buf: uint64(uintptr(unsafe.Pointer(&p[0]))), Len: uint32(len(p))}
}

// do issues the call for the first n ranges. The outcome of each is in ranges[i].Error.
func (v *vectors) do(fd int, req uintptr, n int) error {
	v.rw = rwArg{Ranges: uint64(uintptr(unsafe.Pointer(&v.ranges[0]))), Count: uint32(n)}
	_, err := ioctl(fd, req, unsafe.Pointer(&v.rw))
	clear(v.bufs[:n])
	return guestError(err)
}

// ReadPhys implements source.Source.
func (g *Guest) ReadPhys(p []byte, addr uint64) error { return g.single(p, addr, false) }

// WritePhys implements source.Writer.
func (g *Guest) WritePhys(p []byte, addr uint64) error { return g.single(p, addr, true) }

func (g *Guest) single(p []byte, addr uint64, write bool) error {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if g.closed {
		return source.ErrClosed
	}
	req := readMem
	if write {
		req = writeMem
	}
	v := vectorPool.Get().(*vectors)
	defer vectorPool.Put(v)
	for start, size := addr, len(p); len(p) > 0; {
		n := min(len(p), maxRangeBytes)
		v.set(0, p[:n], addr)
		err := v.do(g.fd, req, 1)
		if err == nil {
			err = rangeError(v.ranges[0].Error)
		}
		if err != nil {
			return &source.AccessError{Addr: start, Size: size, Write: write, Err: err}
		}
		p, addr = p[n:], addr+uint64(n)
	}
	return nil
}

// rangeError translates the outcome of one range into errors of source.
func rangeError(e int32) error {
	switch errno := unix.Errno(-e); {
	case e == 0:
		return nil
	case errno == unix.EROFS || errno == unix.EACCES || errno == unix.EPERM:
		return errors.Join(source.ErrHole, errno) // ROM: no RAM to write to
	default:
		return guestError(errno)
	}
}

// ReadPhysBatch implements source.BatchReader. If it fails as a whole, each request has the
// error.
func (g *Guest) ReadPhysBatch(reqs []source.Request) error {
	return source.FailAll(reqs, g.readBatch(reqs))
}

func (g *Guest) readBatch(reqs []source.Request) error {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if g.closed {
		return source.ErrClosed
	}
	v := vectorPool.Get().(*vectors)
	defer vectorPool.Put(v)
	s, err := g.current(v)
	if err != nil {
		return err
	}
	n := 0
	for i := range reqs {
		r := &reqs[i]
		r.Err = nil
		if len(r.P) == 0 {
			continue
		}
		if view := s.view(r.Addr, uint64(len(r.P))); view != nil && source.CopyView(r.P, view) {
			continue
		}
		if len(r.P) > maxRangeBytes {
			r.Err = g.single(r.P, r.Addr, false)
			continue
		}
		v.set(n, r.P, r.Addr)
		v.which[n] = i
		if n++; n == maxRanges {
			if err := g.readRest(v, n, reqs); err != nil {
				return err
			}
			n = 0
		}
	}
	if n == 0 {
		return nil
	}
	return g.readRest(v, n, reqs)
}

// current returns the layout. It reads it again if the VM's has changed.
func (g *Guest) current(v *vectors) (*layoutState, error) {
	if _, err := ioctl(g.fd, getInfo, unsafe.Pointer(&v.info)); err != nil {
		return nil, guestError(err)
	}
	if v.info.State&stateGone != 0 {
		return nil, source.ErrGone
	}
	if s := g.layout.now.Load(); s.generation == v.info.SlotsGeneration {
		return s, nil
	}
	if err := g.relayout(); err != nil {
		return nil, err
	}
	return g.layout.now.Load(), nil
}

// readRest serves requests through READ.
func (g *Guest) readRest(v *vectors, n int, reqs []source.Request) error {
	if err := v.do(g.fd, readMem, n); err != nil {
		return err
	}
	for i := range n {
		if err := rangeError(v.ranges[i].Error); err != nil {
			r := &reqs[v.which[i]]
			r.Err = &source.AccessError{Addr: r.Addr, Size: len(r.P), Err: err}
		}
	}
	return nil
}
