package scan

import (
	"context"
	"fmt"
	"time"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/pe"
)

// Bounds on the executable memory outside files that is scanned, in bytes. A piece is a run
// of pages with no gap larger than pieceGap.
const (
	maxPiece      = 32 << 20
	pieceGap      = 64 << 10
	processBudget = 128 << 20
)

// listedLast is how long the listed ranges of processes are used. In a long scan they are
// listed again when the turn of the process comes.
const listedLast = time.Second

// regions scans the executable memory of a process that is not an image: memory that it
// allocated, and views of sections that are not images. Memory that begins like an image is
// also rebuilt and scanned as a file.
func (w *imageScanner) regions(ctx context.Context, it *item) error {
	p, vads := it.process, it.vads
	what := fmt.Sprintf("process %d (%s)", p.PID, p.Name)
	if len(vads) == 0 || time.Since(w.listed) > listedLast {
		var err error
		if vads, _, err = w.guest.VADs(ctx, p); err != nil { // its problems are those of the modules, which are noted
			return w.unreadIn(ctx, p, what+", address space", err)
		}
	}
	budget, tables := uint64(processBudget), introspect.RegionTables
	for i := range vads {
		v := &vads[i]
		if v.Image() {
			continue
		}
		runs, complete, err := w.guest.Committed(ctx, p, v, &tables)
		if err != nil {
			return w.unreadIn(ctx, p, what, err)
		}
		for _, r := range pieces(runs) {
			if r.End-r.Start > budget {
				w.failIn(p, what, fmt.Errorf("memory %#x-%#x: more executable memory than is scanned of one process", r.Start, r.End))
				break
			}
			budget -= r.End - r.Start
			if err := w.piece(ctx, p, v, r); err != nil {
				return err
			}
		}
		if !complete {
			w.failIn(p, what, fmt.Errorf("memory from %#x on: more page tables than are followed", v.Start))
			break
		}
	}
	return nil
}

// pieces joins runs of pages into pieces of bounded size. It returns those with executable
// pages.
func pieces(runs []introspect.Run) []introspect.Run {
	var out []introspect.Run
	var last introspect.Run
	flush := func() {
		if last.Executable {
			out = append(out, last)
		}
		last = introspect.Run{}
	}
	for _, r := range runs {
		for r.Start < r.End {
			part := r
			if part.End-part.Start > maxPiece {
				part.End = part.Start + maxPiece
			}
			r.Start = part.End
			if last.End == 0 || part.Start-last.End > pieceGap || part.End-last.Start > maxPiece {
				flush()
				last = part
				continue
			}
			last.End, last.Executable = part.End, last.Executable || part.Executable
		}
	}
	flush()
	return out
}

// piece copies and scans one piece of a range.
func (w *imageScanner) piece(ctx context.Context, p *introspect.Process, v *introspect.VAD, r introspect.Run) error {
	c := w.copier
	what := fmt.Sprintf("process %d (%s), memory %#x-%#x", p.PID, p.Name, r.Start, r.End)
	frames, pages := c.room((r.End - r.Start) / pe.PageSize)
	if err := c.guest.RangeFrames(ctx, p, v, r.Start, frames); err != nil {
		return w.unreadIn(ctx, p, what, err)
	}
	region := finding.Region{Type: finding.RegionPrivate, Image: v.Path}
	if !v.Private {
		region.Type = finding.RegionMapped
	}
	w.mu.Lock()
	w.out.Regions++
	w.mu.Unlock()
	known, err := w.recogniseRegion(ctx, p, r.Start, frames)
	if err != nil {
		return w.unreadIn(ctx, p, what, err)
	}
	if known {
		return nil
	}
	img := &pe.Image{Name: "memory", Base: r.Start, Pages: pages}
	img.Mem, _ = c.buffer(uint64(len(frames)))
	if err := c.guest.ReadFrames(ctx, img.Mem, frames); err != nil {
		return w.unreadIn(ctx, p, what, err)
	}
	for i, f := range frames {
		img.Pages[i] = origins[f.Origin]
	}
	key := c.copiedRegionKey(img)
	rec, err := w.memory(ctx, memoryForm{process: p, image: img, region: region, path: v.Path})
	if rec != nil && err == nil {
		remember(w.results, key, rec)
	}
	return err
}

// memoryForm is memory that is scanned in the form in which it runs.
type memoryForm struct {
	process *introspect.Process // nil for the kernel
	image   *pe.Image
	only    []pe.Range     // RVAs to scan of an image that has a file; nil for everything
	region  finding.Region // its type and its image; memory fills in the rest
	path    string         // of the file behind it; "" for none
}

// memory scans the memory form of a part. The record is nil if something was found or was
// not scanned in full.
func (w *imageScanner) memory(ctx context.Context, m memoryForm) (*memoryRecord, error) {
	p, region := m.process, m.region
	view, err := pe.NewMemoryView(m.image, m.only, maxPiece)
	if err != nil {
		return nil, nil // its pages are not whole, which never happens
	}
	rec := &memoryRecord{}
	if len(view.Data) == 0 {
		return rec, nil // nothing but zeros
	}
	first, last := view.Runs[0], view.Runs[len(view.Runs)-1]
	rec.Start, rec.End = first.VA, last.VA+last.Size
	rec.Missing, rec.Dropped = view.Absent+view.Dropped, view.Dropped > 0
	rec.Coverage = float64(len(view.Data)) / float64(uint64(len(view.Data))+rec.Missing)
	region.Start, region.End = finding.Address(rec.Start), finding.Address(rec.End)
	region.PE = view.PE && m.only == nil
	for _, r := range view.Runs {
		region.Executable += r.Size
	}
	what := memoryName(p, rec)
	f := finding.Finding{Kind: finding.KindSignature, Image: fmt.Sprintf("%s memory %s-%s", region.Type, region.Start, region.End),
		File: m.path, Base: region.Start, Size: uint64(region.End - region.Start), Region: &region,
		Fidelity: finding.Fidelity{Form: finding.FormMemory, Coverage: rec.Coverage, Missing: rec.Missing}}
	if region.Image != "" {
		f.Image += " of " + region.Image
	}
	res, sum, _, err := w.scan(ctx, what, view.Data)
	if err != nil {
		return nil, ifScanEnds(ctx, err)
	}
	if res.Signature != "" {
		f.Signature, f.SHA256 = res.Signature, fmt.Sprintf("%x", sum)
		w.found(ctx, p, f, Content{Scanned: view.Data})
		return nil, nil
	}
	clean := res.Skipped == ""
	if clean {
		w.checkRegionCoverage(p, what, rec)
	}
	rec.Sums = append(rec.Sums, sum)
	if region.PE {
		opt := pe.Options{PE32: narrow(w.guest)}
		file, err := w.rebuilder.Rebuild(m.image, opt)
		if err != nil {
			return orNil(rec, clean), nil // its memory form was scanned
		}
		if res, sum, _, err = w.scan(ctx, what+", rebuilt", file.Data); err != nil {
			return nil, ifScanEnds(ctx, err)
		}
		if res.Signature != "" {
			f.Signature, f.SHA256, f.Fidelity, f.Hashes = res.Signature, fmt.Sprintf("%x", sum), fidelity(file.Fidelity), hashes(file, opt)
			w.found(ctx, p, f, Content{file.Data, m.image.Mem, file.Fidelity})
			return nil, nil
		}
		clean = clean && res.Skipped == ""
		rec.Sums = append(rec.Sums, sum)
	}
	return orNil(rec, clean), nil
}

func orNil(rec *memoryRecord, clean bool) *memoryRecord {
	if !clean {
		return nil
	}
	return rec
}

func memoryName(p *introspect.Process, rec *memoryRecord) string {
	who := "the kernel"
	if p != nil {
		who = fmt.Sprintf("process %d (%s)", p.PID, p.Name)
	}
	return fmt.Sprintf("%s, memory %s-%s", who, finding.Address(rec.Start), finding.Address(rec.End))
}

// checkRegionCoverage notes an error if too little of a region without a signature was
// seen.
func (w *imageScanner) checkRegionCoverage(p *introspect.Process, what string, rec *memoryRecord) {
	if rec.Dropped || rec.Coverage < w.req.MinCoverage {
		w.failIn(p, what, fmt.Errorf("%.0f %% of it was seen, too little to call it clean", 100*rec.Coverage))
	}
}
