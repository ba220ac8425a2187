package sweep

import (
	"context"
	"fmt"

	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/pe"
	"vmav.dev/vmav/internal/report"
)

// Bounds on what is scanned of executable memory outside of files, in bytes. A piece is
// a run of pages with no gap larger than pieceGap.
const (
	maxPiece      = 32 << 20
	pieceGap      = 64 << 10
	processBudget = 128 << 20
)

// regions scans the memory of a process that is executable and no image: what it
// allocated itself, and views of sections that are no image. Beside the memory form,
// what begins as an image does is rebuilt and scanned as a file.
func (w *worker) regions(ctx context.Context, p *introspect.Process) error {
	what := fmt.Sprintf("process %d (%s)", p.PID, p.Name)
	vads, _, err := w.guest.VADs(ctx, p) // its problems are those of the modules
	if err != nil {
		return w.unread(ctx, what+", address space", err)
	}
	budget, tables := uint64(processBudget), introspect.RegionTables
	for i := range vads {
		v := &vads[i]
		if v.Image() {
			continue
		}
		runs, complete, err := w.guest.Committed(ctx, p, v, &tables)
		if err != nil {
			return w.unread(ctx, what, err)
		}
		for _, r := range pieces(runs) {
			if r.End-r.Start > budget {
				w.fail(what, fmt.Errorf("memory %#x-%#x: more executable memory than is scanned of one process", r.Start, r.End))
				break
			}
			budget -= r.End - r.Start
			if err := w.piece(ctx, p, v, r); err != nil {
				return err
			}
		}
		if !complete {
			w.fail(what, fmt.Errorf("memory from %#x on: more page tables than are followed", v.Start))
			break
		}
	}
	return nil
}

// pieces joins runs of pages into pieces with executable pages, of bounded size.
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
func (w *worker) piece(ctx context.Context, p *introspect.Process, v *introspect.VAD, r introspect.Run) error {
	n := (r.End - r.Start) / pe.PageSize
	c := w.copier
	mem, from := c.buffer(n)
	region := report.Region{Type: report.RegionPrivate, Image: v.Path}
	if !v.Private {
		region.Type = report.RegionMapped
	}
	if err := c.guest.ReadImage(ctx, p, v, r.Start, mem, from); err != nil {
		return w.unread(ctx, fmt.Sprintf("process %d (%s), memory %#x-%#x", p.PID, p.Name, r.Start, r.End), err)
	}
	img := &pe.Image{Name: "memory", Base: r.Start, Mem: mem, Pages: c.pages[:n]}
	for i, o := range from {
		img.Pages[i] = origins[o]
	}
	w.mu.Lock()
	w.out.Regions++
	w.mu.Unlock()
	return w.memory(ctx, p, img, nil, region, v.Path)
}

// memory scans the memory form of a region: all of img, or the RVAs in only of an image
// that has a file. path is that of the file behind it, "" for none.
func (w *worker) memory(ctx context.Context, p *introspect.Process, img *pe.Image, only []pe.Range, region report.Region, path string) error {
	view, err := pe.NewMemoryView(img, only, maxPiece)
	if err != nil || len(view.Data) == 0 {
		return nil // nothing but zeros
	}
	first, last := view.Runs[0], view.Runs[len(view.Runs)-1]
	region.Start, region.End = report.Address(first.VA), report.Address(last.VA+last.Size)
	region.PE = view.PE && only == nil
	for _, r := range view.Runs {
		region.Executable += r.Size
	}
	pid, name := uint64(4), "kernel"
	if p != nil {
		pid, name = p.PID, p.Name
	}
	what := fmt.Sprintf("process %d (%s), memory %s-%s", pid, name, region.Start, region.End)
	total := view.Absent + uint64(len(view.Data)) + view.Dropped
	coverage := float64(len(view.Data)) / float64(total)
	f := report.Finding{Kind: report.KindSignature, Image: fmt.Sprintf("%s memory %s-%s", region.Type, region.Start, region.End),
		File: path, Base: region.Start, Size: uint64(region.End - region.Start), Region: &region,
		Fidelity: report.Fidelity{Form: report.FormMemory, Coverage: coverage, Missing: view.Absent + view.Dropped}}
	if region.Image != "" {
		f.Image += " of " + region.Image
	}
	res, sum, _, err := w.scan(ctx, what, view.Data)
	if err != nil {
		return ended(ctx, err)
	}
	if res.Signature == "" && res.Skipped == "" && (view.Dropped > 0 || coverage < w.opt.MinCoverage) {
		w.fail(what, fmt.Errorf("%.0f %% of it was seen, too little to call it clean", 100*coverage))
	}
	if res.Signature != "" {
		f.Signature, f.SHA256 = res.Signature, fmt.Sprintf("%x", sum)
		w.found(ctx, p, f, Exhibit{Scanned: view.Data})
		return nil
	}
	if !region.PE {
		return nil
	}
	file, err := w.rebuilder.Rebuild(img, pe.Options{})
	if err != nil {
		return nil // it was scanned as the memory it is
	}
	if res, sum, _, err = w.scan(ctx, what+", rebuilt", file.Data); err != nil {
		return ended(ctx, err)
	}
	if res.Signature != "" {
		f.Signature, f.SHA256, f.Fidelity, f.Hashes = res.Signature, fmt.Sprintf("%x", sum), fidelity(file.Fidelity), hashes(file, pe.Options{})
		w.found(ctx, p, f, Exhibit{file.Data, img.Mem, file.Fidelity})
	}
	return nil
}
