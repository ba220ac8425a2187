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

// kuserShared is where every x64 Windows maps KUSER_SHARED_DATA in its kernel.
const kuserShared = 0xfffff78000000000

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
		if r.CR4&(1<<5) == 0 {
			continue // no PAE: not a 64-bit system
		}
		as := &AddressSpace{t: t, dtb: r.CR3 & pfnMask, levels: 4}
		if r.CR4&(1<<12) != 0 {
			as.levels = 5
		}
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
	if len(regs) > 0 && !paging {
		return nil, fmt.Errorf("%w: its processors have paging off, so it is in its firmware or boot loader", ErrBooting)
	}
	return searchPhysical(ctx, t, len(regs) > 0)
}

// idtHandler is the address of the page fault handler, or 0.
func idtHandler(as *AddressSpace, idt uint64) uint64 {
	var gate [16]byte
	if idt == 0 || as.Read(gate[:], idt+14*16) != nil {
		return 0
	}
	le := binary.LittleEndian
	return uint64(le.Uint16(gate[:])) | uint64(le.Uint16(gate[6:]))<<16 | uint64(le.Uint32(gate[8:]))<<32
}

// scanBack looks for the kernel image that holds the code at va: its header lies at
// a page boundary below, perhaps behind pages that are not in RAM.
func scanBack(as *AddressSpace, va uint64) *located {
	if va>>47 == 0 || !as.canonical(va) {
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

// searchSpace walks what a tree maps in the region of system images, from
// 0xfffff80000000000 on, and returns the kernel in it, or nil. Each page and each gap
// costs one of the budget.
func searchSpace(as *AddressSpace, budget *int) *located {
	const first, span = 0xfffff80000000000, 1 << 39
	for va := uint64(first); va < first+span; {
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
				if shift > 21 {
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
// addresses first: a page with exactly one entry in its upper half that points to
// the page itself, under which KUSER_SHARED_DATA and a kernel are mapped.
func searchPhysical(ctx context.Context, t *tables, running bool) (*located, error) {
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
				page := chunk[off : off+pageSize]
				pa := at + uint64(off)
				if !selfMapped(page, pa) {
					continue
				}
				// Nothing but what lies under it tells a PML4 from a PML5.
				for _, levels := range []int{4, 5} {
					as := &AddressSpace{t: t, dtb: pa, levels: levels}
					if _, origin, err := as.translate(kuserShared); err != nil || origin != PageResident {
						continue
					}
					if k := searchSpace(as, &budget); k != nil {
						k.how = "physical scan"
						return k, nil
					}
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
		return nil, fmt.Errorf("%w: no page tables of a 64-bit Windows kernel in its memory", ErrNotWindows)
	}
	return nil, fmt.Errorf("%w: no page tables of a 64-bit Windows kernel in it", ErrNotWindows)
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

// selfMapped tells whether a page can be a top-level table of Windows: exactly one
// valid entry of its upper half refers to the page, and no valid entry is of a form
// that the processor would not take there.
func selfMapped(page []byte, pa uint64) bool {
	self := 0
	for i := 256; i < 512; i++ {
		e := binary.LittleEndian.Uint64(page[8*i:])
		if e&pteValid == 0 {
			continue
		}
		if e&pteLarge != 0 {
			return false // reserved in a PML4 entry
		}
		if e&pfnMask == pa {
			self++
		}
	}
	return self == 1 && pa != 0
}
