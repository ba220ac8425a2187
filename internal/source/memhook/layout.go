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

// window is a range of guest RAM and its mapping in this process. mem is nil if it could
// not be mapped, which only costs speed.
type window struct {
	source.Range
	mem []byte
}

// layoutState is the layout of guest RAM at one generation of the VM's memory slots.
type layoutState struct {
	generation uint64
	ranges     []source.Range
	windows    []window // one for each range
}

// layout tracks the layout of guest RAM. Mappings stay until unmap, since readers may be
// using them.
type layout struct {
	now atomic.Pointer[layoutState]
	mu  sync.Mutex // one change at a time
	all []window
}

const (
	maxSlots   = 32768 // KVM's own limit
	maxWindows = 1024  // mappings over the life of a Guest
)

// relayout reads the VM's memory slots, lets the module drop mapped pages that are no
// longer guest RAM, and maps new ranges. The caller prevents the Guest from being closed
// meanwhile.
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

// window returns the mapping of a range, from an earlier layout if the range was the same
// there.
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

// slots reads the VM's memory slots, in a buffer that is large enough for all.
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

// joinSlots turns slots into ranges in ascending order and joins adjacent ones.
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

// Ranges implements source.Source. It returns guest RAM and ROM as of the last look at the
// layout. Batches update it when the layout has changed.
func (g *Guest) Ranges() []source.Range { return g.layout.now.Load().ranges }

// Share implements source.Sharer. The file is that of this attachment, which the module
// allows to be mapped read-only. When the layout changes, which batches notice, the module
// removes the pages from all mappings of the attachment together.
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

// view returns the guest memory at [addr, addr+size) as it is mapped in this process, or
// nil if it is not mapped in one piece. The guest changes it at any time. A page that QEMU
// has given up faults, so it is read through source.CopyView.
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
