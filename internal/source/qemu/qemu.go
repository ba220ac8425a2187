package qemu

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"sync"

	"golang.org/x/sys/unix"

	"vmav.dev/vmav/internal/source"
)

// Config names the process to read and the way to its monitor.
type Config struct {
	Name string // of the domain, for messages
	PID  int    // of the QEMU process
	// Monitor runs one command of QEMU's human monitor and returns its answer.
	Monitor func(ctx context.Context, command string) (string, error)
}

// Guest is a guest that is read through its QEMU process. It implements source.Source and
// source.BatchReader.
type Guest struct {
	cfg    Config
	blocks []block
	ranges []source.Range

	mu     sync.RWMutex // held for reading while the process is in use
	pidfd  int
	closed bool
}

// block is a range of guest RAM and its address in the QEMU process.
type block struct {
	source.Range
	host uint64
}

// Open asks QEMU for the layout of the guest's RAM and prepares to read it. The caller must
// be allowed to trace the process: as the same user, or root. The error wraps
// source.ErrGone if the process has ended. The caller closes the Guest.
func Open(ctx context.Context, cfg Config) (*Guest, error) {
	fd, err := unix.PidfdOpen(cfg.PID, 0)
	if err != nil {
		return nil, fmt.Errorf("open QEMU process %d of domain %s: %w", cfg.PID, cfg.Name, gone(err))
	}
	g := &Guest{cfg: cfg, pidfd: fd}
	if err := g.layOut(ctx); err != nil {
		if g.alive() != nil && !errors.Is(err, source.ErrGone) {
			err = fmt.Errorf("%w: %w", source.ErrGone, err)
		}
		g.Close()
		return nil, fmt.Errorf("find the memory of domain %s in QEMU process %d: %w", cfg.Name, cfg.PID, err)
	}
	return g, nil
}

func gone(err error) error {
	if errors.Is(err, unix.ESRCH) {
		return source.ErrGone
	}
	return err
}

func (g *Guest) layOut(ctx context.Context) error {
	text, err := g.cfg.Monitor(ctx, "info mtree -f")
	if err != nil {
		return err
	}
	regions, err := parseMemoryTree(text)
	if err != nil {
		return err
	}
	for _, r := range regions {
		host, err := g.hostOf(ctx, r.Range)
		if err != nil {
			return fmt.Errorf("address of %#x (%s): %w", r.Start, r.name, err)
		}
		g.blocks = append(g.blocks, block{r.Range, host})
		g.ranges = append(g.ranges, r.Range)
	}
	// Check the right to read now, and not in the middle of a scan.
	var b [1]byte
	return g.ReadPhys(b[:], g.ranges[0].Start)
}

// hostOf asks the monitor for the address of a range in the process. QEMU maps a block in
// one piece, so the addresses of both ends must fit.
func (g *Guest) hostOf(ctx context.Context, r source.Range) (uint64, error) {
	ask := func(addr uint64) (uint64, error) {
		text, err := g.cfg.Monitor(ctx, fmt.Sprintf("gpa2hva 0x%x", addr))
		if err != nil {
			return 0, err
		}
		return parseHostAddress(text)
	}
	first, err := ask(r.Start)
	if err != nil {
		return 0, err
	}
	last, err := ask(r.End() - 1)
	if err != nil {
		return 0, err
	}
	if last-first != r.Size-1 {
		return 0, fmt.Errorf("its ends are %#x bytes apart in the process, not %#x", last-first, r.Size-1)
	}
	return first, nil
}

// find returns the block that holds addr.
func (g *Guest) find(addr uint64) *block {
	i := sort.Search(len(g.blocks), func(i int) bool { return g.blocks[i].End() > addr })
	if i == len(g.blocks) || addr < g.blocks[i].Start {
		return nil
	}
	return &g.blocks[i]
}

// vectors has the arguments of one process_vm_readv call. They come from a pool, because a
// read must not allocate.
type vectors struct {
	local  [maxVectors]unix.Iovec
	remote [maxVectors]unix.RemoteIovec
	which  [maxVectors]int // request of a batch
}

const maxVectors = 512 // IOV_MAX is 1024

var vectorPool = sync.Pool{New: func() any { return new(vectors) }}

// ReadPhys implements source.Source.
func (g *Guest) ReadPhys(p []byte, addr uint64) error {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if g.closed {
		return source.ErrClosed
	}
	v := vectorPool.Get().(*vectors)
	defer vectorPool.Put(v)
	for start, size := addr, len(p); len(p) > 0; {
		b := g.find(addr)
		if b == nil {
			return &source.AccessError{Addr: start, Size: size, Err: source.ErrHole}
		}
		n := min(uint64(len(p)), b.End()-addr)
		v.set(0, p[:n], b.host+addr-b.Start)
		got, err := unix.ProcessVMReadv(g.cfg.PID, v.local[:1], v.remote[:1], 0)
		if err != nil {
			return &source.AccessError{Addr: start, Size: size, Err: g.reason(err)}
		}
		if got == 0 {
			return &source.AccessError{Addr: start, Size: size, Err: source.ErrHole}
		}
		p, addr = p[got:], addr+uint64(got)
	}
	return g.alive()
}

func (v *vectors) set(i int, p []byte, host uint64) {
	v.local[i].Base = &p[0]
	v.local[i].SetLen(len(p))
	v.remote[i] = unix.RemoteIovec{Base: uintptr(host), Len: len(p)}
}

// reason translates the error of a failed copy into source's errors.
func (g *Guest) reason(err error) error {
	switch {
	case errors.Is(err, unix.ESRCH) || g.alive() != nil:
		return source.ErrGone
	case errors.Is(err, unix.EFAULT):
		// QEMU no longer maps it: unplugged since the layout was read.
		return source.ErrHole
	}
	return err
}

// alive fails with ErrGone once the process has ended. It is called after each copy: if the
// process is alive then, the bytes came from it.
func (g *Guest) alive() error {
	fds := [1]unix.PollFd{{Fd: int32(g.pidfd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds[:], 0)
	if err == nil && n == 0 || errors.Is(err, unix.EINTR) {
		return nil
	}
	return source.ErrGone
}

// ReadPhysBatch implements source.BatchReader with many requests in one system call. If it
// fails as a whole, each request has the error.
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
	for next := 0; next < len(reqs); {
		n := 0
		for ; next < len(reqs) && n < maxVectors; next++ {
			r := &reqs[next]
			r.Err = nil
			if len(r.P) == 0 {
				continue
			}
			b := g.find(r.Addr)
			if b == nil || uint64(len(r.P)) > b.End()-r.Addr {
				r.Err = &source.AccessError{Addr: r.Addr, Size: len(r.P), Err: source.ErrHole}
				continue
			}
			v.set(n, r.P, b.host+r.Addr-b.Start)
			v.which[n] = next
			n++
		}
		if err := g.copy(v, n, reqs); err != nil {
			return err
		}
	}
	return g.alive()
}

// copy serves the first n vectors. The kernel stops at the first page that it cannot read.
// That request fails, and copy goes on with the next.
func (g *Guest) copy(v *vectors, n int, reqs []source.Request) error {
	for done := 0; done < n; {
		got, err := unix.ProcessVMReadv(g.cfg.PID, v.local[done:n], v.remote[done:n], 0)
		if err != nil {
			if why := g.reason(err); !errors.Is(why, source.ErrHole) {
				return why
			}
			got = 0
		}
		for done < n && got >= v.remote[done].Len {
			got -= v.remote[done].Len
			done++
		}
		if done < n {
			r := &reqs[v.which[done]]
			r.Err = &source.AccessError{Addr: r.Addr, Size: len(r.P), Err: source.ErrHole}
			done++
		}
	}
	return nil
}

// Ranges implements source.Source.
func (g *Guest) Ranges() []source.Range { return g.ranges }

// Registers implements source.Source. QEMU's monitor stops the vCPUs while it reads them.
func (g *Guest) Registers(ctx context.Context) ([]source.Registers, error) {
	if err := g.alive(); err != nil {
		return nil, err
	}
	text, err := g.cfg.Monitor(ctx, "info registers -a")
	if err != nil {
		if g.alive() != nil {
			return nil, source.ErrGone
		}
		return nil, err
	}
	return parseRegisters(text)
}

// Info implements source.Source.
func (g *Guest) Info() source.Info {
	return source.Info{Kind: source.KindQEMU, Name: g.cfg.Name, Form: fmt.Sprintf("process_vm_readv, pid %d", g.cfg.PID), Live: true}
}

// Close implements source.Source. It waits for reads that are under way.
func (g *Guest) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil
	}
	g.closed = true
	return unix.Close(g.pidfd)
}
