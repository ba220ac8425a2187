package introspect

import (
	"encoding/binary"
	"math"
)

// format describes one kind of address space: how its page tables are built, how Windows
// writes entries that are not valid, and which addresses Windows uses for what. Page tables
// are those of the Intel SDM, volume 3, chapter 4. The software forms are
// _MMPTE_TRANSITION, _MMPTE_PROTOTYPE and _MMPTE_SOFTWARE of the kernel's symbols; their
// bits are the same on every build of one format, except where a field says otherwise.
type format struct {
	name string // as Kernel.Paging has it
	va   uint   // bits of an address
	top  uint   // address bits below the index into the top table
	step uint   // bits of an index
	pte  uint64 // bytes of an entry
	ptr  uint32 // bytes of a pointer

	root       uint64 // mask of the top table's address in CR3
	transition uint64 // mask of the frame's address in a transition entry
	fileShift  uint   // lowest bit of the offset in a page file
	noExec     bool   // entries can forbid execution

	kernelLow   uint64 // lowest kernel address
	userHigh    uint64 // highest user-mode address
	align       uint64 // of pool blocks, and therefore of objects
	kuser       uint64 // KUSER_SHARED_DATA in the kernel
	images      uint64 // the region where the kernel's image lies
	imagesBytes uint64
}

// format64 returns what both 64-bit formats have in common.
func format64(name string, levels uint) *format {
	va := 12 + 9*levels
	return &format{name: name, va: va, top: 3 + 9*levels, step: 9, pte: 8, ptr: 8,
		root: pfnMask, transition: 0x0000fffffffff000, fileShift: 32, noExec: true,
		kernelLow: ^uint64(0) << (va - 1), userHigh: 1<<47 - 1, align: 16, kuser: 0xfffff78000000000,
		images: 0xfffff80000000000, imagesBytes: 1 << 39}
}

// format32 completes f with what both 32-bit formats have in common. The kernel has the
// upper half of the address space, or only the upper quarter if the guest was booted with
// the option /3GB.
func format32(f format) *format {
	f.va, f.ptr = 32, 4
	f.kernelLow, f.userHigh, f.align = 1<<31, 0xbfffffff, 8
	f.kuser, f.images, f.imagesBytes = 0xffdf0000, 1<<31, 1<<31
	return &f
}

var (
	formatX64  = format64("x64", 4)
	formatLA57 = format64("x64-la57", 5)
	formatPAE  = format32(format{name: "x86-pae", top: 30, step: 9, pte: 8, root: 0xffffffe0, transition: 0x3ffffff000, fileShift: 32, noExec: true})
	formatX86  = format32(format{name: "x86", top: 22, step: 10, pte: 4, root: 0xfffff000, transition: 0xfffff000, fileShift: 12})
)

// formatNamed returns the format with a name, or nil.
func formatNamed(name string) *format {
	for _, f := range []*format{formatX64, formatLA57, formatPAE, formatX86} {
		if f.name == name {
			return f
		}
	}
	return nil
}

// wide reports whether this is a format of 64-bit mode.
func (f *format) wide() bool { return f.ptr == 8 }

// canonical reports whether the processor accepts va as an address.
func (f *format) canonical(va uint64) bool {
	if !f.wide() {
		return va <= math.MaxUint32
	}
	top := int64(va) >> (f.va - 1)
	return top == 0 || top == -1
}

// kernelObject reports whether v can be the address of an object that the kernel allocated.
func (f *format) kernelObject(v uint64) bool {
	return f.kernelImage(v) && v%f.align == 0
}

// kernelImage reports whether v is in the kernel's part of the address space.
func (f *format) kernelImage(v uint64) bool { return v >= f.kernelLow && f.canonical(v) }

// user reports whether v is in the user-mode part of the address space.
func (f *format) user(v uint64) bool { return v <= f.userHigh }

// entryAt returns the address of the entry for va in a table whose entries map 1<<shift
// bytes each.
func (f *format) entryAt(table, va uint64, shift uint) uint64 {
	return table + va>>shift&(1<<f.step-1)*f.pte
}

// entryIn returns the i-th entry of a table.
func (f *format) entryIn(table *[pageSize]byte, i uint64) uint64 {
	if f.pte == 4 {
		return uint64(binary.LittleEndian.Uint32(table[4*i:]))
	}
	return binary.LittleEndian.Uint64(table[8*i:])
}

// large reports whether a valid entry above the last level maps a large page.
func (f *format) large(pte uint64, shift uint) bool {
	if pte&pteLarge == 0 {
		return false
	}
	return shift == 21 || shift == 22 || shift == 30 && f.wide()
}

// frame returns the guest-physical address of the page of 1<<shift bytes that a valid entry
// maps.
func (f *format) frame(pte uint64, shift uint) uint64 {
	at := pte & pfnMask &^ (1<<shift - 1)
	if shift == 22 {
		at |= pte >> 13 & 0xff << 32 // PSE-36
	}
	return at
}

// plainPointer reports whether an entry that is not valid is a kernel address as it is. Since
// 22621 those of pages that are in a file can be (MemProcFS, mm_win.c). In no other form are
// these bits set: those of a frame or an offset lie lower, and the address of a prototype
// entry in its upper 48 bits would be one of the last 2 GiB, where none lies. But an entry
// whose upper half is all ones says that only the VAD tells. With 57-bit addresses the upper
// eight bits say the same, unless the entry is marked as one for a prototype entry.
func (f *format) plainPointer(pte uint64) bool {
	if !f.wide() || pte>>32 == 0xffffffff {
		return false
	}
	return pte>>47 == 1<<17-1 || f.va > 48 && pte>>56 == 0xff && pte&ptePrototype == 0
}

// prototype returns the kernel address of the prototype entry to which an invalid entry
// refers. ok is false if only the VAD knows that address: the entry says so, or it holds a
// distance from a base that the kernel does not publish (x86 without PAE).
func (f *format) prototype(pte uint64) (at uint64, ok bool) {
	switch {
	case f.wide():
		at = uint64(int64(pte) >> protoShift)
		if at >= 0xffffffff0000 {
			at |= 0xffff000000000000
		}
		ok = uint32(at) != 0xffffffff && (at>>32 != 0xffffffff || uint32(at) != 0xffff0000)
	case f.pte == 8:
		at = pte >> 32
		ok = at != 0xffffffff
	}
	return at, ok
}

// fastRef returns the address in an EX_FAST_REF. The low bits, which the alignment of
// objects leaves free, count references: four bits, or three on x86.
func (f *format) fastRef(v uint64) uint64 { return v &^ (f.align - 1) }
