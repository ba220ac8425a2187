package ntguest

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sort"
)

const (
	pageShift = 12
)

// frame is the content of one page frame.
type frame [pageSize]byte

// memory is sparse guest-physical memory and the allocator of its frames. Frames
// come in random order out of a window that moves up through memory, as scattered
// as those of a system that has run for a while, yet without holes in the end.
type memory struct {
	frames map[uint64]*frame // by page frame number
	size   uint64            // bytes of RAM
	rng    *rand.Rand

	next   uint64   // first frame number after the window
	window []uint64 // shuffled free frames
}

const (
	firstFreeFrame = 0x2a0000 >> pageShift // below it: firmware, boot stub, fixed frames
	windowFrames   = 512
	topReserved    = 4 << 20 // bytes at the end of RAM that firmware uses
	high           = 32 << 30
)

func newMemory(size uint64, rng *rand.Rand) *memory {
	return &memory{frames: make(map[uint64]*frame), size: size, rng: rng, next: firstFreeFrame}
}

// alloc returns the number of a zeroed frame that nobody else has.
func (m *memory) alloc() uint64 {
	if len(m.window) == 0 {
		end := m.ramBelow4G()
		if m.next<<pageShift >= 1<<32 {
			end = m.size
		}
		if (m.next+windowFrames)<<pageShift > end-topReserved {
			panic(fmt.Errorf("the guest does not fit into %d MiB of memory", m.size>>20))
		}
		for i := range uint64(windowFrames) {
			m.window = append(m.window, m.next+i)
		}
		m.next += windowFrames
		m.rng.Shuffle(len(m.window), func(i, j int) { m.window[i], m.window[j] = m.window[j], m.window[i] })
	}
	pfn := m.window[len(m.window)-1]
	m.window = m.window[:len(m.window)-1]
	m.frames[pfn] = new(frame)
	return pfn
}

// allocLow takes a frame below 4 GiB, where those of alloc may not be.
func (m *memory) allocLow() uint64 {
	pfn := uint64(0x200)
	for m.frames[pfn] != nil {
		pfn++
	}
	return m.allocAt(pfn)
}

// allocAt takes one particular frame below the allocator's range.
func (m *memory) allocAt(pfn uint64) uint64 {
	if pfn >= firstFreeFrame || m.frames[pfn] != nil {
		panic(fmt.Errorf("frame %#x is taken", pfn))
	}
	m.frames[pfn] = new(frame)
	return pfn
}

// ramBelow4G is the end of RAM below the PCI hole. QEMU's q35 machine moves RAM above 2 GiB
// to 4 GiB, pc moves RAM above 3 GiB. The guest's RAM ends below both.
func (m *memory) ramBelow4G() uint64 { return min(m.size, 2<<30) }

// frame returns the content of a frame that was allocated.
func (m *memory) frame(pfn uint64) *frame {
	f := m.frames[pfn]
	if f == nil {
		panic(fmt.Errorf("frame %#x was never allocated", pfn))
	}
	return f
}

// used returns the numbers of all frames with content, ascending.
func (m *memory) used() []uint64 {
	out := make([]uint64, 0, len(m.frames))
	for pfn := range m.frames {
		out = append(out, pfn)
	}
	sort.Slice(out, func(i, j int) bool { return out[i] < out[j] })
	return out
}

func (m *memory) put64(pa uint64, v uint64) {
	binary.LittleEndian.PutUint64(m.frame(pa >> pageShift)[pa%pageSize:], v)
}

func (m *memory) get64(pa uint64) uint64 {
	return binary.LittleEndian.Uint64(m.frame(pa >> pageShift)[pa%pageSize:])
}

// putEntry and entry access an entry of a page table, of 4 or 8 bytes.
func (m *memory) putEntry(pa, v, size uint64) {
	if size == 8 {
		m.put64(pa, v)
		return
	}
	// A 32-bit entry has no room for the no-execute bit.
	binary.LittleEndian.PutUint32(m.frame(pa >> pageShift)[pa%pageSize:], uint32(v))
}

func (m *memory) entry(pa, size uint64) uint64 {
	if size == 8 {
		return m.get64(pa)
	}
	return uint64(binary.LittleEndian.Uint32(m.frame(pa >> pageShift)[pa%pageSize:]))
}
