package ntguest

import (
	"encoding/binary"
	"fmt"
)

// Bits of a page table entry (Intel SDM volume 3, chapter 4) and of the software
// forms that Windows gives one that is not valid (_MMPTE_* of the profile).
const (
	pteValid      = 1 << 0
	pteWrite      = 1 << 1
	pteUser       = 1 << 2
	pteAccessed   = 1 << 5
	pteDirty      = 1 << 6
	pteLarge      = 1 << 7
	pteGlobal     = 1 << 8
	pteCOW        = 1 << 9 // _MMPTE_HARDWARE.CopyOnWrite
	ptePrototype  = 1 << 10
	pteTransition = 1 << 11
	pteNX         = 1 << 63
	ptePFN        = 0x000ffffffffff000
)

// space is one address space: a tree of x64 page tables under a PML4, or with LA57
// under a PML5.
type space struct {
	mem  *memory
	root uint64            // frame number
	top  int               // shift of the root's index: 39, or 48
	pt   map[uint64]uint64 // page table frame by va >> 21
}

func (b *builder) newSpace(root uint64) *space {
	s := &space{mem: b.mem, root: root, top: 39, pt: make(map[uint64]uint64)}
	if b.opts.LA57 {
		s.top = 48
	}
	return s
}

// table returns the frame of the page table that maps va, made where missing.
func (s *space) table(va uint64) uint64 {
	if pfn, ok := s.pt[va>>21]; ok {
		return pfn
	}
	bits := uint64(pteValid | pteWrite | pteAccessed | pteDirty)
	if va>>47 == 0 {
		bits |= pteUser
	}
	at := s.root
	for shift := s.top; shift >= 21; shift -= 9 {
		pa := at<<pageShift + va>>shift&511*8
		entry := s.mem.get64(pa)
		if entry == 0 {
			entry = s.mem.alloc()<<pageShift | bits
			s.mem.put64(pa, entry)
		}
		at = entry & ptePFN >> pageShift
	}
	s.pt[va>>21] = at
	return at
}

// pteAddress is the physical address of the entry that maps va.
func (s *space) pteAddress(va uint64) uint64 {
	return s.table(va)<<pageShift + va>>12&511*8
}

// setPTE writes the entry of va as it is.
func (s *space) setPTE(va, pte uint64) { s.mem.put64(s.pteAddress(va), pte) }

// mapFrame maps one frame at va with further bits beside valid and accessed.
func (s *space) mapFrame(va, pfn, bits uint64) {
	s.setPTE(va, pfn<<pageShift|pteValid|pteAccessed|bits)
}

// frameAt returns the frame mapped at va.
func (s *space) frameAt(va uint64) (*frame, bool) {
	pfn, ok := s.pt[va>>21]
	if !ok {
		return nil, false
	}
	pte := s.mem.get64(pfn<<pageShift + va>>12&511*8)
	if pte&pteValid == 0 {
		return nil, false
	}
	return s.mem.frame(pte & ptePFN >> pageShift), true
}

// write copies p to va; every page of it must be mapped.
func (s *space) write(va uint64, p []byte) {
	for len(p) > 0 {
		f, ok := s.frameAt(va)
		if !ok {
			panic(fmt.Errorf("write to %#x, which is not mapped", va))
		}
		n := copy(f[va%pageSize:], p)
		p, va = p[n:], va+uint64(n)
	}
}

// read copies from va.
func (s *space) read(va uint64, p []byte) {
	for len(p) > 0 {
		f, ok := s.frameAt(va)
		if !ok {
			panic(fmt.Errorf("read of %#x, which is not mapped", va))
		}
		n := copy(p, f[va%pageSize:])
		p, va = p[n:], va+uint64(n)
	}
}

func (s *space) put(va, v uint64, size uint32) {
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	s.write(va, b[:size])
}

func (s *space) get(va uint64, size uint32) uint64 {
	var b [8]byte
	s.read(va, b[:size])
	return binary.LittleEndian.Uint64(b[:])
}

// arena hands out kernel address space of one purpose and maps it.
type arena struct {
	s     *space
	start uint64
	next  uint64
	bits  uint64 // of its mappings
}

// alloc returns the address of n mapped, zeroed bytes, aligned.
func (a *arena) alloc(n, align uint64) uint64 {
	va := (a.next + align - 1) &^ (align - 1)
	end := va + n
	for page := (a.next + pageSize - 1) &^ (pageSize - 1); page < end; page += pageSize {
		a.s.mapFrame(page, a.s.mem.alloc(), a.bits)
	}
	a.next = end
	return va
}

// pages returns n whole pages.
func (a *arena) pages(n uint64) uint64 {
	va := a.alloc(n*pageSize, pageSize)
	return va
}

// reserve returns address space with page tables but no mapping.
func (a *arena) reserve(n, align uint64) uint64 {
	a.next = (a.next + pageSize - 1) &^ (pageSize - 1)
	va := (a.next + align - 1) &^ (align - 1)
	a.next = va + n
	for page := va &^ (1<<21 - 1); page < a.next; page += 1 << 21 {
		a.s.table(max(page, va))
	}
	return va
}
