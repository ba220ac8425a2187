package introspect

import (
	"encoding/binary"
	"errors"
	"fmt"

	"vmav.dev/vmav/internal/source"
)

const (
	pteWrite  = 1 << 1
	pteUser   = 1 << 2
	pteNoExec = 1 << 63
)

// Mapping is how the processor maps one address. Its rights are those that remain after all
// levels of page tables.
type Mapping struct {
	GPA        uint64 // guest-physical address of the byte
	User       bool   // user mode may access it
	Writable   bool
	Executable bool
	Entry      uint64 // guest-physical address of the last entry
	PTE        uint64 // its value
	size       uint64 // bytes of the entry, 4 or 8
}

// Mapping reads how va is mapped, from the page tables in the guest and not from cached
// copies. The error wraps ErrNotPresent if the processor would fault. Entry and PTE are
// then those of the entry at which it would; Entry is 0 if there is none.
func (as *AddressSpace) Mapping(va uint64) (Mapping, error) {
	m := Mapping{User: true, Writable: true, Executable: true, size: as.f.pte}
	absent := &AddressError{VA: va, DTB: as.dtb, Err: ErrNotPresent}
	f := as.f
	if !f.canonical(va) {
		return Mapping{}, absent
	}
	buf := wordPool.Get().(*[8]byte)
	defer wordPool.Put(buf)
	table := as.dtb
	for shift := f.top; ; shift -= f.step {
		m.Entry = f.entryAt(table, va, shift)
		clear(buf[:])
		if err := as.t.src.ReadPhys(buf[:f.pte], m.Entry); err != nil {
			if errors.Is(err, source.ErrHole) {
				return Mapping{}, absent // a table that points outside RAM
			}
			return Mapping{}, &AddressError{VA: va, DTB: as.dtb, Err: err}
		}
		m.PTE = binary.LittleEndian.Uint64(buf[:])
		if m.PTE&pteValid == 0 {
			return m, absent
		}
		if shift != 30 || f.wide() { // the four entries at the top of PAE have no rights
			m.User = m.User && m.PTE&pteUser != 0
			m.Writable = m.Writable && m.PTE&pteWrite != 0
		}
		m.Executable = m.Executable && m.PTE&pteNoExec == 0
		if shift == pageShift || f.large(m.PTE, shift) {
			m.GPA = f.frame(m.PTE, shift) | va&(1<<shift-1)
			return m, nil
		}
		table = m.PTE & pfnMask
	}
}

// Guard returns the condition that the mapping stays as it is: the same frame, and no loss
// of the user-mode and write rights that it has.
func (m Mapping) Guard() source.Guard {
	return guard(m.Entry, m.size, pfnMask|pteValid|pteUser|pteWrite, m.PTE)
}

// guard returns the condition that the bits in mask of a value stay as they are. size is
// the value's size in bytes, 4 or 8. Guards are of aligned 8-byte words.
func guard(gpa, size, mask, value uint64) source.Guard {
	if size == 4 {
		mask &= 1<<32 - 1
		if gpa%8 == 4 {
			gpa, mask, value = gpa-4, mask<<32, value<<32
		}
	}
	return source.Guard{GPA: gpa, Mask: mask, Value: value & mask}
}

// ReadFile fills p with the mapped file's content at va, as the section has it, whatever
// the process has changed in its own copy. All of [va, va+len(p)) lies in v. The error
// wraps ErrNotPresent if a page of the file is not in RAM.
func (g *Guest) ReadFile(p []byte, v *VAD, va uint64) error {
	if v.proto == 0 || va < v.Start || va > v.End || uint64(len(p)) > v.End-va+1 {
		return fmt.Errorf("read file behind %#x: no file is mapped there", va)
	}
	for len(p) > 0 {
		n := min(uint64(len(p)), pageSize-va%pageSize)
		at, ok := v.prototype(g.as.f, va)
		if !ok {
			return &AddressError{VA: va, Err: ErrNotPresent}
		}
		pa, origin, err := g.as.prototype(at, va)
		if err != nil {
			return &AddressError{VA: va, Err: err}
		}
		if origin != PagePrototype {
			return &AddressError{VA: va, Err: ErrNotPresent}
		}
		if err := g.src.ReadPhys(p[:n], pa); err != nil {
			return &AddressError{VA: va, Err: err}
		}
		p, va = p[n:], va+n
	}
	return nil
}
