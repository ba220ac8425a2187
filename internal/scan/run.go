package scan

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/pagein"
	"vmav.dev/vmav/internal/winstruct"
)

// run is one scan of one guest.
type run struct {
	InProcess
	target Target
	req    Request
	on     Events
	guest  *introspect.Guest

	results  Results
	procs    []introspect.Process
	mappings *Mappings
	files    *Files
	pager    *pagein.Pager // nil if the guest is not asked for pages
	listed   time.Time     // when the enumeration began

	mu       sync.Mutex
	out      finding.Scan // without findings and errors
	troubles []trouble
	waits    int // how many moments the scan has waited

	rebuildTime, scanTime atomic.Int64 // nanoseconds, over all goroutines
	progress              Progress
}

// Scan implements Scanner.
func (p InProcess) Scan(ctx context.Context, t Target, req Request, on Events) (finding.Scan, error) {
	if req.Jobs <= 0 {
		req.Jobs = DefaultJobs
	}
	begin := time.Now()
	r := &run{InProcess: p, target: t, req: req, on: on, results: p.Memory.For(ctx, p.Engine), out: Empty(t),
		mappings: NewMappings(), files: NewFiles()}
	err := r.run(ctx)
	r.out.Timing.Rebuild = time.Duration(r.rebuildTime.Load()).Seconds()
	r.out.Timing.Scan = time.Duration(r.scanTime.Load()).Seconds()
	r.out.Timing.Total = time.Since(begin).Seconds()
	return r.out, err
}

// Empty returns the result of a target that was not scanned yet. Its status is
// finding.StatusFailed.
func Empty(t Target) finding.Scan {
	d := finding.Scan{Name: t.Name, UUID: t.UUID, State: t.State, Status: finding.StatusFailed,
		Findings: []finding.Finding{}, Errors: []finding.Unread{}}
	if t.Source != nil {
		d.Source = t.Source.Info().Kind
	}
	return d
}

func (r *run) run(ctx context.Context) error {
	begin := time.Now()
	g, err := r.open(ctx, &r.target, r.req.At)
	r.out.Timing.Locate = time.Since(begin).Seconds()
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		refuse(&r.out, err)
		return nil
	}
	r.guest = g
	k := g.Kernel()
	r.out.Build, r.out.Profile, r.out.Unproven = k.Version, k.Identity.Key(), k.Unproven
	if k.Inferred != "" {
		r.out.Profile, r.out.InferredFrom = finding.ProfileInferred, k.Inferred
		r.out.Missing = k.Identity.String()
	}

	begin = time.Now()
	r.listed = begin
	items, err := r.enumerate(ctx)
	r.out.Timing.Enumerate = time.Since(begin).Seconds()
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		r.reportTroubles()
		r.out.Reason = err.Error()
		return nil
	}
	r.out.Status = finding.StatusScanned
	if r.req.PageIn != nil {
		if r.pager, err = OpenPager(g, r.target.Source, *r.req.PageIn); err != nil {
			r.unread("page in", err)
		} else {
			defer r.pager.Close()
		}
	}
	err = r.scanItems(ctx, items)
	if r.pager != nil {
		r.out.PageIns = r.pager.Pages()
	}
	r.reportTroubles()
	if err != nil {
		r.out.Status = finding.StatusIncomplete
	}
	g.Refresh() // a later scan uses the same guest
	return err
}

// refuse notes why a guest was not scanned. A guest that is not Windows is skipped.
// Everything else is a failure, because it may be a Windows that was not looked at.
func refuse(d *finding.Scan, err error) {
	d.Reason = err.Error()
	d.Status = finding.StatusFailed
	if errors.Is(err, introspect.ErrNotWindows) {
		d.Status = finding.StatusSkipped
	}
	var missing *winstruct.MissingError
	if errors.As(err, &missing) {
		d.Profile, d.Missing = finding.ProfileMissing, missing.Identity.String()
	}
}

// unread reports something that could not be read.
func (r *run) unread(what string, err error) {
	r.on.Unread(finding.Unread{What: what, Error: err.Error()})
}

// item is one image to scan, or the rest of a process's executable memory.
type item struct {
	process *introspect.Process // nil for a driver
	module  introspect.Module
	regions bool // the item is the executable memory outside images, and no module
	vads    []introspect.VAD
}

func (it *item) what() string {
	if it.process == nil {
		return fmt.Sprintf("driver %s", it.module.Name)
	}
	return fmt.Sprintf("process %d (%s), image %s", it.process.PID, it.process.Name, it.module.Name)
}

// file returns the path of the image's file according to the guest's kernel, or "" if it is
// not known. A process cannot change this path, but it can change the name in its loader's
// list.
func (it *item) file() string {
	if v := it.module.VAD(); v != nil {
		return v.Path
	}
	if it.process == nil {
		return it.module.Path // the kernel's own list
	}
	return ""
}

// enumerate lists every image of the guest, or those that the scan is focused on.
func (r *run) enumerate(ctx context.Context) ([]item, error) {
	if r.req.Focus != nil {
		return r.focus(ctx)
	}
	procs, problems, err := r.processes(ctx)
	if err != nil {
		return nil, err
	}
	r.procs = procs
	wanted := func(pid uint64) bool { return len(r.req.PIDs) == 0 || slices.Contains(r.req.PIDs, pid) }
	if len(r.req.PIDs) == 0 {
		r.note(problems)
	}
	found := make(map[uint64]bool)
	var items []item
	for i := range procs {
		p := &procs[i]
		list := r.ranges
		if !wanted(p.PID) {
			list = r.guest.ModulesAndVADs // the problems of this process are not reported
		}
		mods, vads, problems, err := list(ctx, p)
		if err != nil {
			return nil, err
		}
		r.mappings.Add(p, mods)
		if !wanted(p.PID) {
			continue
		}
		found[p.PID] = true
		r.out.Processes++
		r.note(problems)
		for _, m := range mods {
			if slices.Contains(m.Flags, introspect.FlagUnmapped) {
				continue // a false loader entry: nothing is mapped there
			}
			items = append(items, item{process: p, module: m})
		}
		if p.PEB != 0 && p.Exited.IsZero() {
			items = append(items, item{process: p, regions: true, vads: vads})
		}
	}
	for _, pid := range r.req.PIDs {
		if !found[pid] {
			return nil, fmt.Errorf("no process %d in the guest", pid)
		}
	}
	if len(r.req.PIDs) == 0 {
		drivers, problems, err := r.guest.Drivers(ctx)
		if err != nil {
			return nil, err
		}
		r.note(problems)
		kernel := r.guest.Kernel().Base
		for _, d := range drivers {
			if d.Base != kernel { // docs/ARCHITECTURE.md says why the kernel's own image is left out
				items = append(items, item{module: d})
			}
		}
	}
	return items, nil
}

// scanItems scans the items, several at a time.
func (r *run) scanItems(ctx context.Context, items []item) error {
	r.progress = Progress{Domain: r.target.Name}
	for i := range items {
		if !items[i].regions {
			r.progress.Total++
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	queue := make(chan item)
	var wg sync.WaitGroup
	for range r.req.Jobs {
		wg.Add(1)
		go func() {
			defer wg.Done()
			w := imageScanner{run: r, copier: NewCopier(r.guest, r.mappings, r.files)}
			w.copier.PageIn(r.pager)
			w.copier.digester = newDigester(r.guest, r.results)
			for it := range queue {
				if it.regions {
					if err := w.regions(ctx, &it); err != nil {
						cancel(err)
					}
					continue
				}
				if err := w.image(ctx, &it); err != nil {
					cancel(err)
				}
				r.step()
			}
		}()
	}
feed:
	for _, it := range items {
		select {
		case queue <- it:
		case <-ctx.Done():
			break feed
		}
	}
	close(queue)
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return nil
}

func (r *run) step() {
	r.mu.Lock()
	r.progress.Done++
	p := r.progress
	r.mu.Unlock()
	r.on.Progress(p)
}
