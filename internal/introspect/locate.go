package introspect

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/winstruct"
)

// Reasons why a guest is no running Windows. Test for them with errors.Is.
var (
	// ErrNotWindows reports a guest that runs something else. The error's text says what it
	// looks like, if that can be told.
	ErrNotWindows = errors.New("the guest is not Windows")
	// ErrBooting reports a guest that is still in its firmware or boot loader, or whose
	// Windows kernel has no System process yet.
	ErrBooting = errors.New("the guest is still booting")
)

// located is a kernel that was found and whose profile is not known yet.
type located struct {
	as   *AddressSpace // page tables that map the kernel, of the System process or any other
	base uint64
	size uint32
	id   winstruct.Identity
	how  string
}

// locate finds the Windows kernel. It looks at the page tables that the vCPUs use, and else
// searches physical memory for page tables that map themselves, as those of Windows do.
func locate(ctx context.Context, t *tables) (*located, error) {
	regs, err := t.src.Registers(ctx)
	if err != nil && !errors.Is(err, source.ErrNoRegisters) {
		return nil, fmt.Errorf("read vCPU registers: %w", err)
	}
	paging := false
	for i := range regs {
		r := &regs[i]
		if r.CR0>>31 == 0 {
			continue // paging is off: firmware, or a processor not started
		}
		paging = true
		for _, f := range formats(r) {
			as := newSpace(t, f, r.CR3)
			for _, c := range []struct {
				va  uint64
				how string
			}{{r.LSTAR, "LSTAR"}, {idtHandler(as, r.IDTBase), "IDT"}, {r.RIP, "RIP"}} {
				if k := scanBack(as, c.va); k != nil {
					k.how = fmt.Sprintf("%s of vCPU %d", c.how, r.CPU)
					return k, nil
				}
			}
			budget := searchBudget
			if k := searchSpace(as, &budget); k != nil {
				k.how = fmt.Sprintf("page tables of vCPU %d", r.CPU)
				return k, nil
			}
		}
	}
	if len(regs) > 0 && !paging {
		return nil, fmt.Errorf("%w: its processors have paging off, so it is in its firmware or boot loader", ErrBooting)
	}
	return searchPhysical(ctx, t, len(regs) > 0)
}

// kernelAt returns the kernel at a place where one was found before, or nil.
func kernelAt(t *tables, at Place) *located {
	f := formatNamed(at.Paging)
	if f == nil {
		return nil
	}
	k := tryKernel(newSpace(t, f, at.DTB), at.Base)
	if k != nil {
		k.how = at.Located
	}
	return k
}

// formats returns the address space formats that a vCPU with these registers may use. EFER
// distinguishes 64-bit mode from PAE. A source that does not carry EFER has 0 there, so
// both are possible.
func formats(r *source.Registers) []*format {
	const cr4PAE, cr4LA57, eferLMA = 1 << 5, 1 << 12, 1 << 10
	wide := formatX64
	if r.CR4&cr4LA57 != 0 {
		wide = formatLA57
	}
	switch {
	case r.CR4&cr4PAE == 0:
		return []*format{formatX86}
	case r.EFER&eferLMA != 0 || r.CR3>>32 != 0 || r.RIP>>32 != 0 || r.IDTBase>>32 != 0:
		return []*format{wide}
	case r.EFER != 0:
		return []*format{formatPAE}
	}
	return []*format{wide, formatPAE}
}

// idtHandler returns the address of the page fault handler in an IDT, or 0.
func idtHandler(as *AddressSpace, idt uint64) uint64 {
	var gate [16]byte
	size := uint64(16)
	if !as.f.wide() {
		size = 8
	}
	if idt == 0 || as.Read(gate[:size], idt+14*size) != nil {
		return 0
	}
	le := binary.LittleEndian
	return uint64(le.Uint16(gate[:])) | uint64(le.Uint16(gate[6:]))<<16 | uint64(le.Uint32(gate[8:]))<<32
}

// scanBack finds the kernel image that contains the code at va. Its header is at a page
// boundary below va; pages in between may not be in RAM.
func scanBack(as *AddressSpace, va uint64) *located {
	if !as.f.kernelImage(va) {
		return nil
	}
	for off := uint64(0); off < maxKernelSize; off += pageSize {
		if k := tryKernel(as, va&^(pageSize-1)-off); k != nil {
			return k
		}
	}
	return nil
}

// tryKernel returns the kernel whose header lies at base, or nil.
func tryKernel(as *AddressSpace, base uint64) *located {
	pa, origin, err := as.translate(base)
	if err != nil || origin != PageResident {
		return nil
	}
	var mz [2]byte
	if as.t.src.ReadPhys(mz[:], pa) != nil || mz != [2]byte{'M', 'Z'} {
		return nil
	}
	id, size, err := identifyKernel(as, base)
	if err != nil {
		return nil
	}
	return &located{as: as, base: base, size: size, id: id}
}

// searchBudget bounds the page table entries that one search for the kernel looks at in all
// the trees it tries. A hostile guest can fill its memory with page tables.
const searchBudget = 1 << 20

// searchSpace walks the page tables of the region in which Windows loads system images, and
// returns the kernel in it, or nil. Each page and each gap takes one from the budget.
func searchSpace(as *AddressSpace, budget *int) *located {
	first := as.f.images
	for va := first; va-first < as.f.imagesBytes; {
		if *budget--; *budget < 0 {
			return nil
		}
		pte, shift, ok, err := as.walk(va)
		if err != nil {
			return nil
		}
		if !ok {
			// Nothing is mapped below this entry: go on behind it.
			va = (va | (1<<shiftOf(shift) - 1)) + 1
			continue
		}
		if pte&pteValid != 0 {
			for off := uint64(0); off < 1<<shift; off += pageSize {
				if *budget--; *budget < 0 {
					return nil
				}
				if k := tryKernel(as, va+off); k != nil {
					return k
				}
				if shift > 22 {
					break // no image lies in a 1 GiB page
				}
			}
		}
		va = (va | (1<<shift - 1)) + 1
	}
	return nil
}

// shiftOf returns the size of the gap that walk found, as a shift. An address that is not
// canonical has shift 0 and counts as a gap of one page.
func shiftOf(shift uint) uint {
	if shift == 0 {
		return pageShift
	}
	return shift
}

const scanChunk = 1 << 20 // bytes read at once

// searchPhysical searches RAM, lowest addresses first, for a top-level page table of
// Windows: one that maps itself, and below which KUSER_SHARED_DATA and a kernel are mapped.
// running says that the vCPUs have paging on.
func searchPhysical(ctx context.Context, t *tables, running bool) (*located, error) {
	var k *located
	buf := make([]byte, scanChunk)
	linux, empty, budget := false, true, searchBudget
	firmware := uint64(1 << 20) // memory below is written by the firmware
	if rs := t.src.Ranges(); len(rs) > 0 && rs[len(rs)-1].End() <= firmware {
		firmware = 0
	}
	for _, r := range t.src.Ranges() {
		for at := r.Start; at < r.End(); at += scanChunk {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			chunk := buf[:min(scanChunk, r.End()-at)]
			if err := t.src.ReadPhys(chunk, at); err != nil {
				if errors.Is(err, source.ErrHole) {
					continue
				}
				return nil, fmt.Errorf("search physical memory for the kernel: %w", err)
			}
			for off := 0; off+pageSize <= len(chunk); off += pageSize {
				eachRoot(t, chunk[off:off+pageSize], at+uint64(off), func(as *AddressSpace) bool {
					if _, origin, err := as.translate(as.f.kuser); err != nil || origin != PageResident {
						return false
					}
					if k = searchSpace(as, &budget); k != nil {
						k.how = "physical scan"
					}
					return k != nil
				})
				if k != nil {
					return k, nil
				}
			}
			if empty && at >= firmware && !zero(chunk) {
				empty = false
			}
			if !linux && bytes.Contains(chunk, []byte("Linux version ")) {
				linux = true
			}
		}
	}
	switch {
	case linux:
		return nil, fmt.Errorf("%w: it looks like Linux", ErrNotWindows)
	case empty:
		return nil, fmt.Errorf("%w: its memory is empty above the first megabyte", ErrBooting)
	case running:
		return nil, fmt.Errorf("%w: no page tables of a Windows kernel in its memory", ErrNotWindows)
	}
	return nil, fmt.Errorf("%w: no page tables of a Windows kernel in it", ErrNotWindows)
}

func zero(p []byte) bool {
	for len(p) >= 8 {
		if binary.LittleEndian.Uint64(p) != 0 {
			return false
		}
		p = p[8:]
	}
	return true
}
