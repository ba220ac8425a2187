package watch

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"time"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/respond"
	"vmav.dev/vmav/internal/scan"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/source/memhook"
	"vmav.dev/vmav/internal/subject"
)

// Triggers of scans, as they are logged.
const (
	TriggerStart = "watch: start"    // a sweep at the beginning of the watch of a guest
	TriggerNew   = "watch: new"      // a scan of what is new
	TriggerTimer = "watch: interval" // a sweep at intervals
)

// retrySweep is the time after which a sweep that failed is repeated.
const retrySweep = 30 * time.Second

// sweepLoop sweeps the guest at intervals.
func (w *guestWatch) sweepLoop(ctx context.Context) error {
	o := &w.f.svc.opt
	trigger := TriggerStart
	for {
		wait := o.Interval + rand.N(o.Jitter+1)
		ok, err := w.sweep(ctx, trigger)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, source.ErrGone), errors.Is(err, source.ErrClosed):
			return err
		case !ok:
			wait = retrySweep
		default:
			trigger = TriggerTimer
		}
		next := time.Now().Add(wait)
		w.f.set(func(st *DomainStatus) { st.NextSweep = &next })
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// sweep scans everything in the guest, once the budget has room for it.
func (w *guestWatch) sweep(ctx context.Context, trigger string) (ok bool, err error) {
	b := w.f.svc.budget
	if err := acquire(ctx, b.domains); err != nil {
		return false, err
	}
	defer release(b.domains)
	w.f.set(func(st *DomainStatus) { st.Sweeping = true })
	defer w.f.set(func(st *DomainStatus) { st.Sweeping = false })
	// The sweep has its own cache, so that no page is older than the sweep.
	src := source.NewCache(w.src, cachePages)
	acc := w.f.svc.opt.Accounts.Account(w.f.name, w.f.uuid, true)
	d, err := w.scan(ctx, w.f.svc.opt.Scanners.Scanner(w.means(false)), src, w.request(), acc)
	if ctx.Err() != nil && len(d.Findings) == 0 {
		return false, ctx.Err()
	}
	w.conclude(ctx, acc, nil, trigger, &d)
	w.f.svc.opt.Results.Flush()
	w.f.svc.count(func(c *Counts) { c.Sweeps++; c.Errors += len(d.Errors) })
	if d.Status == finding.StatusFailed {
		w.f.log.Warn("sweep failed", "trigger", trigger, "reason", d.Reason)
		return false, err
	}
	now := time.Now()
	w.f.set(func(st *DomainStatus) { st.LastSweep, st.Status = &now, d.Status })
	w.f.log.Info("swept", "trigger", trigger, "status", d.Status, "processes", d.Processes, "images", d.Images, "files", d.Files,
		"findings", len(d.Findings), "errors", len(d.Errors), "seconds", d.Timing.Total)
	for i, e := range d.Errors {
		if i == 10 {
			w.f.log.Warn("more could not be read", "errors", len(d.Errors)-i)
			break
		}
		w.f.log.Warn("not read in full", "what", e.What, "error", e.Error)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.swept = err == nil
	return err == nil, err
}

// request returns what all scans of this guest have in common.
func (w *guestWatch) request() scan.Request {
	req := w.f.svc.opt.Request
	req.Looked, req.At = true, w.guest.Kernel().Place()
	return req
}

// scan lets a scanner scan the guest through a source, and responds to what it finds.
func (w *guestWatch) scan(ctx context.Context, by scan.Scanner, src source.Source, req scan.Request, acc respond.Account) (finding.Scan, error) {
	o := &w.f.svc.opt
	d := w.f.current()
	t := scan.Target{Name: d.Name, UUID: d.UUID, State: d.State, Source: src, Domain: w.f}
	return respond.Scan(ctx, by, t, req, respond.Options{Policy: o.Policy, Kill: o.Kill, Profiles: o.Profiles,
		Kills: respond.KillLock(ctx, o.Runtime, d.UUID), Holder: &w.holds, Recorder: acc, Known: &w.reported, Observer: w})
}

// means returns the means of this guest's scans. Urgent scans, of what is new, do not wait
// for others.
func (w *guestWatch) means(urgent bool) scan.Means {
	svc := w.f.svc
	return scan.Means{Profiles: svc.opt.Profiles, Engine: slotted{svc.engine, svc.budget, urgent}, Memory: svc.opt.Results}
}

// Progress implements respond.Observer.
func (w *guestWatch) Progress(scan.Progress) {}

// Looked implements respond.Observer. It remembers an image that was looked at.
func (w *guestWatch) Looked(id introspect.Identity, image scan.ImageKey, whole bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if known := w.procs[id]; known != nil {
		if len(known.images) >= maxImages {
			clear(known.images) // they are scanned again
		}
		known.images[image] = whole
	}
}

// scanProcess scans what is new in one process. If the process has just come, it first
// scans the program alone, so that a verdict on the program does not wait for the rest.
func (w *guestWatch) scanProcess(ctx context.Context, p *tracked) error {
	steps := []bool{false}
	if p.step == 0 && !p.old {
		steps = []bool{true, false}
	}
	last, broke := p.old || p.step >= len(revisits)-1, ""
	for _, programOnly := range steps {
		w.guest.Refresh()
		now, _ := w.guest.ProcessAt(p.id.EPROCESS)
		if now.Identity() != p.id || !now.Exited.IsZero() {
			w.mu.Lock()
			p.ended, p.due = true, time.Time{}
			w.mu.Unlock()
			return nil
		}
		acc := w.f.svc.opt.Accounts.Account(w.f.name, w.f.uuid, false)
		d, err := w.scanNew(ctx, &now, p, programOnly, acc)
		if errors.Is(err, source.ErrGone) || errors.Is(err, source.ErrClosed) || ctx.Err() != nil && len(d.Findings) == 0 {
			return err
		}
		switch {
		case d.Reason != "":
			broke = d.Reason
		case !last || w.hasEnded(p.id):
			d.Errors = d.Errors[:0] // it is scanned again, or its end is the reason
		}
		w.conclude(ctx, acc, p, TriggerNew, &d)
		w.f.svc.count(func(c *Counts) { c.Incremental++; c.Errors += len(d.Errors) })
		for _, e := range d.Errors {
			w.f.log.Warn("not read in full", "what", e.What, "error", e.Error)
		}
		if err != nil {
			return err
		}
		if broke != "" {
			break
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if broke != "" && p.broken < maxBroken && !p.acted {
		p.after = time.Now().Add(brokenRetry << p.broken)
		p.broken, p.due = p.broken+1, p.after
		w.f.log.Warn("scan of a process broke off; it is made again", "pid", p.id.PID, "process", p.name, "reason", broke)
		return nil
	}
	p.broken = 0
	if p.step++; p.step < len(revisits) && !p.old && !p.acted && p.due.IsZero() {
		p.due = later(p.first.Add(revisits[p.step]), time.Now().Add(time.Millisecond))
	}
	return nil
}

func (w *guestWatch) scanNew(ctx context.Context, now *introspect.Process, p *tracked, programOnly bool, acc respond.Account) (finding.Scan, error) {
	focus := scan.Focused{ID: p.id, Parent: subject.Parent(now, w.others()), Program: programOnly}
	w.mu.Lock()
	for image, whole := range p.images {
		if !programOnly && (whole || p.old || p.step >= len(revisits)) { // sweeps scan the rest of it
			focus.Known = append(focus.Known, image)
		}
	}
	w.mu.Unlock()
	req := w.request()
	req.Focus = []scan.Focused{focus}
	return w.scan(ctx, w.kept, w.src, req, acc)
}

// hasEnded reports whether a process has ended by now.
func (w *guestWatch) hasEnded(id introspect.Identity) bool {
	st, err := w.guest.Recheck(id)
	return err != nil || st.Exiting
}

// moduleThere reports whether the module's device exists.
func (s *Service) moduleThere() bool {
	_, err := os.Stat(memhook.Device)
	return err == nil
}
