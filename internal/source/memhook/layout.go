package memhook

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sort"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmav.dev/vmav/internal/source"
)

// window is a run of guest RAM with its mapping here; mem is nil where it could not
// be mapped, which costs speed only.
type window struct {
	source.Range
	mem []byte
}

// layoutState is guest RAM as it was at one generation of the VM's slots.
type layoutState struct {
	generation uint64
	ranges     []source.Range
	windows    []window // one for each range
}

// layout follows guest RAM. Mappings are kept until unmap, as views of them are out.
type layout struct {
	now atomic.Pointer[layoutState]
	mu  sync.Mutex // one change at a time
	all []window
}

const (
	maxSlots   = 32768 // KVM's own limit
	maxWindows = 1024  // mappings over the life of a Guest
)

// relayout reads the VM's slots, has the module drop mapped pages that are not guest
// RAM any more, and maps what is new. The caller keeps the Guest open.
func (g *Guest) relayout() error {
	l := &g.layout
	l.mu.Lock()
	defer l.mu.Unlock()
	slots, generation, err := g.slots()
	if err != nil {
		return &OpError{Op: "read the memory layout", PID: g.pid, Err: err}
	}
	ranges, err := joinSlots(slots)
	if err != nil {
		return &OpError{Op: "read the memory layout", PID: g.pid, Err: err}
	}
	if _, err := ioctl(g.fd, syncMap, nil); err != nil {
		return &OpError{Op: "follow the memory layout", PID: g.pid, Err: guestError(err)}
	}
	s := &layoutState{generation: generation, ranges: ranges}
	for _, r := range ranges {
		s.windows = append(s.windows, window{r, l.window(g.fd, r)})
	}
	l.now.Store(s)
	return nil
}

// window returns a range's mapping: that of an earlier layout where it is the same.
func (l *layout) window(fd int, r source.Range) []byte {
	for _, w := range l.all {
		if w.Range == r {
			return w.mem
		}
	}
	if len(l.all) >= maxWindows {
		return nil
	}
	mem, err := unix.Mmap(fd, int64(r.Start), int(r.Size), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return nil
	}
	l.all = append(l.all, window{r, mem})
	return mem
}

func (l *layout) unmap() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var errs []error
	for _, w := range l.all {
		errs = append(errs, unix.Munmap(w.mem))
	}
	l.all = nil
	l.now.Store(&layoutState{})
	return errors.Join(errs...)
}

// slots asks for the VM's slots, with room for as many as there are.
func (g *Guest) slots() ([]slotArg, uint64, error) {
	var pin runtime.Pinner // the kernel is handed the buffer's address as a number
	defer pin.Unpin()
	for room := uint32(64); room <= maxSlots; {
		buf := make([]slotArg, room)
		pin.Pin(&buf[0])
		arg := slotsArg{Slots: uint64(uintptr(unsafe.Pointer(&buf[0]))), Count: room}
		_, err := ioctl(g.fd, getSlots, unsafe.Pointer(&arg))
		switch {
		case errors.Is(err, unix.ENOSPC):
			room = arg.Count + 16
		case err != nil:
			return nil, 0, guestError(err)
		case arg.Count > room:
			return nil, 0, fmt.Errorf("the module says %d slots where there is room for %d", arg.Count, room)
		default:
			return buf[:arg.Count], arg.Generation, nil
		}
	}
	return nil, 0, fmt.Errorf("the VM has more than %d slots", maxSlots)
}

// joinSlots makes ranges of slots: ascending, neighbours joined.
func joinSlots(slots []slotArg) ([]source.Range, error) {
	var out []source.Range
	for _, s := range slots {
		if s.GPA%source.PageSize != 0 || s.Size%source.PageSize != 0 || s.Size == 0 || s.GPA+s.Size < s.GPA || s.Size > 1<<52 {
			return nil, fmt.Errorf("slot of %#x bytes at %#x is not whole pages", s.Size, s.GPA)
		}
		if n := len(out); n > 0 {
			last := &out[n-1]
			if s.GPA < last.End() {
				return nil, fmt.Errorf("slots overlap at %#x", s.GPA)
			}
			if s.GPA == last.End() {
				last.Size += s.Size
				continue
			}
		}
		out = append(out, source.Range{Start: s.GPA, Size: s.Size})
	}
	if len(out) == 0 {
		return nil, errors.New("the VM has no RAM")
	}
	return out, nil
}

// Ranges implements source.Source: guest RAM and ROM as of the last look at the layout,
// which batches renew when it has changed.
func (g *Guest) Ranges() []source.Range { return g.layout.now.Load().ranges }

// Share implements source.Sharer. The file is this attachment's: the module lets it be
// mapped read-only, and takes the pages of all its mappings away together when the layout
// changes, which batches here notice.
func (g *Guest) Share() (*os.File, []source.Shared, error) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if g.closed {
		return nil, nil, source.ErrClosed
	}
	fd, err := unix.FcntlInt(uintptr(g.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, nil, &OpError{Op: "share the attachment", PID: g.pid, Err: err}
	}
	var runs []source.Shared
	for _, r := range g.layout.now.Load().ranges {
		runs = append(runs, source.Shared{Range: r, Offset: r.Start})
	}
	return os.NewFile(uintptr(fd), "kvm-memhook"), runs, nil
}

// view is the guest memory at [addr, addr+size) where this process has it mapped, nil
// where it cannot be had in one piece. The guest changes it at any time, and a page that
// QEMU has given up faults: read it through source.CopyView.
func (s *layoutState) view(addr, size uint64) []byte {
	i := sort.Search(len(s.windows), func(i int) bool { return s.windows[i].End() > addr })
	if i == len(s.windows) {
		return nil
	}
	w := &s.windows[i]
	if w.mem == nil || addr < w.Start || size > w.End()-addr {
		return nil
	}
	return w.mem[addr-w.Start:][:size:size]
}
