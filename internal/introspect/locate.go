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

// What a guest can be instead of a running Windows; test with errors.Is.
var (
	// ErrNotWindows reports a guest that runs something else. Its text says what it
	// looks like, where that can be told.
	ErrNotWindows = errors.New("the guest is not Windows")
	// ErrBooting reports a guest that is not up yet: in its firmware or boot loader,
	// or a Windows kernel without a System process.
	ErrBooting = errors.New("the guest is still booting")
)

// located is a kernel that was found, before its profile is known.
type located struct {
	as   *AddressSpace // a tree that maps the kernel; not always the System process's
	base uint64
	size uint32
	id   winstruct.Identity
	how  string
}

// locate finds the Windows kernel: from the page tables that a vCPU uses, or by
// searching physical memory for tables that map themselves, as Windows' do.
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

// revisit is the kernel at the place where one was found before, or nil.
func revisit(t *tables, at Place) *located {
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

// formats are the forms of address space that a vCPU with these registers may use. EFER
// tells 64-bit mode from PAE, where the source carries it: 0 may mean either.
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

// idtHandler is the address of the page fault handler, or 0.
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

// scanBack looks for the kernel image that holds the code at va: its header lies at
// a page boundary below, perhaps behind pages that are not in RAM.
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

// searchBudget bounds the entries that one search for the kernel looks at, over all
// the trees it tries: a guest can fill its memory with tables.
const searchBudget = 1 << 20

// searchSpace walks what a tree maps in the region of system images and returns the
// kernel in it, or nil. Each page and each gap costs one of the budget.
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
			// Nothing below this entry: go on behind it.
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

// shiftOf is the size that an entry without a table below stands for.
func shiftOf(shift uint) uint {
	if shift == 0 {
		return pageShift
	}
	return shift
}

const scanChunk = 1 << 20 // bytes read at once

// searchPhysical looks through RAM for a top-level page table of Windows, lowest
// addresses first: one that leads to itself, under which KUSER_SHARED_DATA and a kernel
// are mapped.
func searchPhysical(ctx context.Context, t *tables, running bool) (*located, error) {
	var k *located
	buf := make([]byte, scanChunk)
	linux, empty, budget := false, true, searchBudget
	firmware := uint64(1 << 20) // what lies below is the firmware's work
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
				roots(t, chunk[off:off+pageSize], at+uint64(off), func(as *AddressSpace) bool {
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
