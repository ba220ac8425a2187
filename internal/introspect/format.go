package introspect

import (
	"encoding/binary"
	"math"
)

// format is a form of address space: how its page tables are built, how Windows writes
// entries of it that are not valid, and where Windows keeps what (Intel SDM volume 3,
// chapter 4; the software forms are _MMPTE_TRANSITION, _MMPTE_PROTOTYPE and
// _MMPTE_SOFTWARE of the kernels' symbols, whose bits are the same on every build of one
// form but where a field says otherwise).
type format struct {
	name string // as Kernel.Paging has it
	va   uint   // bits of an address
	top  uint   // address bits below the index into the top table
	step uint   // bits of an index
	pte  uint64 // bytes of an entry
	ptr  uint32 // bytes of a pointer

	root       uint64 // the bits of CR3 that are the top table's address
	transition uint64 // the bits of a transition entry that are the frame's address
	fileShift  uint   // where the offset in a page file begins
	noExec     bool   // entries can forbid execution

	kernelLow   uint64 // the kernel's addresses are not below
	userHigh    uint64 // and those of user mode not above
	align       uint64 // of pool blocks, and so of objects
	kuser       uint64 // KUSER_SHARED_DATA in the kernel
	images      uint64 // the region where the kernel's image lies
	imagesBytes uint64
}

// long is what the two forms of 64-bit mode share.
func long(name string, levels uint) *format {
	return &format{name: name, va: 12 + 9*levels, top: 3 + 9*levels, step: 9, pte: 8, ptr: 8,
		root: pfnMask, transition: 0x0000fffffffff000, fileShift: 32, noExec: true,
		kernelLow: 0xffff800000000000, userHigh: 1<<47 - 1, align: 16, kuser: 0xfffff78000000000,
		images: 0xfffff80000000000, imagesBytes: 1 << 39}
}

// legacy is what the two forms of 32-bit mode share. The kernel has the upper half, or the
// upper quarter of it where the boot option /3GB moved the border.
func legacy(f format) *format {
	f.va, f.ptr = 32, 4
	f.kernelLow, f.userHigh, f.align = 1<<31, 0xbfffffff, 8
	f.kuser, f.images, f.imagesBytes = 0xffdf0000, 1<<31, 1<<31
	return &f
}

var (
	formatX64  = long("x64", 4)
	formatLA57 = long("x64-la57", 5)
	formatPAE  = legacy(format{name: "x86-pae", top: 30, step: 9, pte: 8, root: 0xffffffe0, transition: 0x3ffffff000, fileShift: 32, noExec: true})
	formatX86  = legacy(format{name: "x86", top: 22, step: 10, pte: 4, root: 0xfffff000, transition: 0xfffff000, fileShift: 12})
)

// formatNamed is the form of a name, or nil.
func formatNamed(name string) *format {
	for _, f := range []*format{formatX64, formatLA57, formatPAE, formatX86} {
		if f.name == name {
			return f
		}
	}
	return nil
}

// wide tells whether it is of 64-bit mode.
func (f *format) wide() bool { return f.ptr == 8 }

// canonical tells whether va is an address that the processor accepts.
func (f *format) canonical(va uint64) bool {
	if !f.wide() {
		return va <= math.MaxUint32
	}
	top := int64(va) >> (f.va - 1)
	return top == 0 || top == -1
}

// kernelObject tells whether v can be the address of something that the kernel allocated.
func (f *format) kernelObject(v uint64) bool {
	return f.kernelImage(v) && v%f.align == 0
}

// kernelImage tells whether v can be an address of the kernel's.
func (f *format) kernelImage(v uint64) bool { return v >= f.kernelLow && f.canonical(v) }

// user tells whether v can be an address of user mode.
func (f *format) user(v uint64) bool { return v <= f.userHigh }

// entryAt is the address of the entry for va in a table whose entries stand for 1<<shift bytes.
func (f *format) entryAt(table, va uint64, shift uint) uint64 {
	return table + va>>shift&(1<<f.step-1)*f.pte
}

// entryIn is an entry of a table, by its index.
func (f *format) entryIn(table *[pageSize]byte, i uint64) uint64 {
	if f.pte == 4 {
		return uint64(binary.LittleEndian.Uint32(table[4*i:]))
	}
	return binary.LittleEndian.Uint64(table[8*i:])
}

// large tells whether a valid entry above the last level maps memory itself.
func (f *format) large(pte uint64, shift uint) bool {
	if pte&pteLarge == 0 {
		return false
	}
	return shift == 21 || shift == 22 || shift == 30 && f.wide()
}

// frame is where the page of 1<<shift bytes lies that a valid entry maps.
func (f *format) frame(pte uint64, shift uint) uint64 {
	at := pte & pfnMask &^ (1<<shift - 1)
	if shift == 22 {
		at |= pte >> 13 & 0xff << 32 // PSE-36
	}
	return at
}

// prototype is the kernel address of the prototype entry that an entry which is not valid
// leads to. ok is false where only the address space descriptor knows it: the entry says
// so, or it holds a distance from a base that the kernel keeps to itself (x86 without PAE).
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

// fastRef is the address in an EX_FAST_REF, which counts references in the bits that the
// alignment of objects leaves: four, or three on x86.
func (f *format) fastRef(v uint64) uint64 { return v &^ (f.align - 1) }
