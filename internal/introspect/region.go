package introspect

import (
	"context"
	"errors"
	"fmt"

	"vmav.dev/vmav/internal/source"
)

// Run is a sequence of adjacent pages with the same properties.
type Run struct {
	Start, End uint64 // End is exclusive
	Executable bool
	Absent     bool // committed, but in a page file
}

// RegionTables bounds the page tables that are walked for all ranges of one process. Tables
// that a hostile guest maps in a circle cost no more than 32 GiB of honestly mapped memory.
const RegionTables = 1 << 14

// maxRegionRuns bounds the runs of one range.
const maxRegionRuns = 1 << 16

// Committed lists the pages in [v.Start, v.End] that the process has, in memory or in a
// page file. Address space that is only reserved costs nothing, however large. tables is
// the rest of RegionTables for this process; Committed subtracts what it uses. complete is
// false if the rest does not suffice. Only a source that fails is an error.
func (g *Guest) Committed(ctx context.Context, p *Process, v *VAD, tables *int) (runs []Run, complete bool, err error) {
	as := g.space(p.DTB)
	w := regionWalk{as: as, vad: v, budget: tables}
	err = w.table(ctx, as.dtb, as.f.top, 0)
	if errors.Is(err, errRegionBudget) {
		return w.runs, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("walk range at %#x: %w", v.Start, err)
	}
	return w.runs, true, nil
}

var errRegionBudget = errors.New("too many page tables")

// regionWalk finds the runs of one range.
type regionWalk struct {
	as     *AddressSpace
	vad    *VAD
	budget *int // page tables that may still be walked
	runs   []Run

	frames, section []Frame // buffers for the pages of one table
}

// table walks the entries of one table that map parts of the range. Each entry maps
// 1<<shift bytes, and the first maps the address base.
func (w *regionWalk) table(ctx context.Context, at uint64, shift uint, base uint64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if *w.budget--; *w.budget < 0 {
		return errRegionBudget
	}
	f := w.as.f
	first, last := uint64(0), uint64(1)<<min(f.step, f.va-shift)-1
	if w.vad.Start > base {
		first = (w.vad.Start - base) >> shift
	}
	if end := (w.vad.End - base) >> shift; end < last {
		last = end
	}
	if shift == pageShift {
		return w.pages(at, base, first, last)
	}
	for i := first; i <= last; i++ {
		va := base + i<<shift
		pte, err := w.as.t.entry(at+i*f.pte, f.pte)
		if err != nil {
			if errors.Is(err, source.ErrHole) {
				return nil
			}
			return err
		}
		switch {
		case pte&pteValid == 0:
		case f.large(pte, shift):
			from, to := max(va, w.vad.Start), min(va+1<<shift-1, w.vad.End)+1
			w.add(Run{Start: from, End: to, Executable: w.executable(pte)})
		case pte&pteLarge != 0: // reserved
		default:
			if err := w.table(ctx, pte&pfnMask, shift-f.step, va); err != nil {
				return err
			}
		}
	}
	return nil
}

// pteNX forbids execution. Entries that are not valid have the index of their protection in
// bits 5 to 9 instead.
const (
	pteNX        = 1 << 63
	protectShift = 5
)

// pages adds the pages of entries first to last of a last-level table, whose first entry
// maps base.
func (w *regionWalk) pages(table, base, first, last uint64) error {
	buf := tableBuffers.Get().(*[pageSize]byte)
	defer tableBuffers.Put(buf)
	if err := w.as.t.copyTable(buf, table); err != nil {
		if errors.Is(err, source.ErrHole) {
			return nil
		}
		return err
	}
	if w.frames == nil {
		w.frames, w.section = make([]Frame, pageSize/w.as.f.pte), make([]Frame, pageSize/w.as.f.pte)
	}
	va, frames := base+first<<pageShift, w.frames[:last-first+1]
	if err := w.as.entryFrames(buf, va, frames); err != nil {
		return err
	}
	start, section, err := w.as.sectionAt(w.vad, va, w.section[:len(frames)])
	if err != nil {
		return err
	}
	addSection(va, frames, start, section)
	for i := range frames {
		if w.page(w.as.f.entryIn(buf, first+uint64(i)), va+uint64(i)*pageSize, frames[i].Origin); len(w.runs) > maxRegionRuns {
			return errRegionBudget
		}
	}
	return nil
}

// page adds the page at va, unless the process's entry for it is empty.
func (w *regionWalk) page(pte, va uint64, origin PageOrigin) {
	if pte == 0 {
		return
	}
	r := Run{Start: va, End: va + pageSize}
	if pte&pteValid != 0 {
		r.Executable = w.executable(pte)
	} else {
		if origin == PageDemandZero {
			return
		}
		protection := uint8(pte >> protectShift & 31)
		if protection == 0 {
			protection = w.vad.Protection
		}
		r.Executable = executable(protection)
		r.Absent = !origin.inMemory()
	}
	w.add(r)
}

// executable reports whether the page of a valid entry is meant to be executed. In a guest
// that does not use the no-execute bit, the processor executes any page, and the protection
// of the range decides.
func (w *regionWalk) executable(pte uint64) bool {
	if !w.as.noExec {
		return w.vad.Executable()
	}
	return pte&pteNX == 0
}

func (w *regionWalk) add(r Run) {
	if n := len(w.runs); n > 0 {
		if l := &w.runs[n-1]; l.End == r.Start && l.Executable == r.Executable && l.Absent == r.Absent {
			l.End = r.End
			return
		}
	}
	w.runs = append(w.runs, r)
}
