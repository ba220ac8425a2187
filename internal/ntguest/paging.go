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

// space is one address space: a tree of page tables under a PML4, with LA57 under a PML5;
// on x86 under a page directory, or with PAE under four.
type space struct {
	mem *memory
	dtb uint64 // physical address of the root
	form
	pt map[uint64]uint64 // page table frame by va >> (pageShift+step)
}

// form is how the page tables of a guest are built.
type form struct {
	top, step uint   // shift of the root's index, bits of an index below it
	pte       uint64 // bytes of an entry
	user      uint64 // the user's addresses lie below
}

func (b *builder) newSpace(dtb uint64) *space {
	s := b.newUserSpace(dtb)
	if b.pae() {
		s.mapDirectories()
	}
	return s
}

// newUserSpace is a space that does not map its own tables.
func (b *builder) newUserSpace(dtb uint64) *space {
	s := &space{mem: b.mem, dtb: dtb, form: b.form, pt: make(map[uint64]uint64)}
	if b.pae() {
		s.makeDirectories()
	}
	return s
}

// covers is the shift of what one page table maps.
func (f form) covers() uint { return pageShift + f.step }

// index is the offset of the entry for va in a table whose entries map 1<<shift bytes.
func (f form) index(va uint64, shift uint) uint64 { return va >> shift & (1<<f.step - 1) * f.pte }

// table returns the frame of the page table that maps va, made where missing.
func (s *space) table(va uint64) uint64 {
	if pfn, ok := s.pt[va>>s.covers()]; ok {
		return pfn
	}
	bits := uint64(pteValid | pteWrite | pteAccessed | pteDirty)
	if va < s.user {
		bits |= pteUser
	}
	at := s.dtb
	for shift := s.top; shift > pageShift; shift -= s.step {
		pa := at + s.index(va, shift)
		entry := s.mem.entry(pa, s.pte)
		if entry == 0 {
			entry = s.mem.alloc()<<pageShift | bits
			s.mem.putEntry(pa, entry, s.pte)
		}
		at = entry & ptePFN
	}
	s.pt[va>>s.covers()] = at >> pageShift
	return at >> pageShift
}

// pteAddress is the physical address of the entry that maps va.
func (s *space) pteAddress(va uint64) uint64 {
	return s.table(va)<<pageShift + s.index(va, pageShift)
}

// setPTE writes the entry of va as it is.
func (s *space) setPTE(va, pte uint64) { s.mem.putEntry(s.pteAddress(va), pte, s.pte) }

// mapFrame maps one frame at va with further bits beside valid and accessed.
func (s *space) mapFrame(va, pfn, bits uint64) {
	s.setPTE(va, pfn<<pageShift|pteValid|pteAccessed|bits)
}

// entryOf is the entry of va, 0 where no table has one.
func (s *space) entryOf(va uint64) uint64 {
	pfn, ok := s.pt[va>>s.covers()]
	if !ok {
		return 0
	}
	return s.mem.entry(pfn<<pageShift+s.index(va, pageShift), s.pte)
}

// frameAt returns the frame mapped at va.
func (s *space) frameAt(va uint64) (*frame, bool) {
	pte := s.entryOf(va)
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
	for page := va &^ (1<<a.s.covers() - 1); page < a.next; page += 1 << a.s.covers() {
		a.s.table(max(page, va))
	}
	return va
}
