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

// Triggers of sweeps, as they are recorded.
const (
	TriggerStart = "watch: start"    // of everything, when the watch of a guest begins
	TriggerNew   = "watch: new"      // of what is new
	TriggerTimer = "watch: interval" // of everything, now and then
)

// retrySweep is when a sweep of everything that failed is made again.
const retrySweep = 30 * time.Second

// sweepLoop sweeps all of the guest, now and then.
func (s *guestWatch) sweepLoop(ctx context.Context) error {
	o := &s.f.svc.opt
	trigger := TriggerStart
	for {
		wait := o.Interval + rand.N(o.Jitter+1)
		ok, err := s.sweep(ctx, trigger)
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
		s.f.set(func(st *DomainStatus) { st.NextSweep = &next })
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// sweep makes one sweep of everything, when the budget has room for it.
func (s *guestWatch) sweep(ctx context.Context, trigger string) (ok bool, err error) {
	b := s.f.svc.budget
	if err := acquire(ctx, b.domains); err != nil {
		return false, err
	}
	defer release(b.domains)
	s.f.set(func(st *DomainStatus) { st.Sweeping = true })
	defer s.f.set(func(st *DomainStatus) { st.Sweeping = false })
	// A cache of its own: a page is as old as the sweep at most.
	src := source.NewCache(s.src, cachePages)
	acc := s.f.svc.opt.Accounts.Account(s.f.name, s.f.uuid, true)
	d, err := s.scan(ctx, s.f.svc.opt.Scanners.Scanner(s.means(false)), src, s.request(), acc)
	if ctx.Err() != nil && len(d.Findings) == 0 {
		return false, ctx.Err()
	}
	s.conclude(ctx, acc, nil, trigger, &d)
	s.f.svc.opt.Results.Flush()
	s.f.svc.count(func(c *Counts) { c.Sweeps++; c.Errors += len(d.Errors) })
	if d.Status == finding.StatusFailed {
		s.f.log.Warn("sweep failed", "trigger", trigger, "reason", d.Reason)
		return false, err
	}
	now := time.Now()
	s.f.set(func(st *DomainStatus) { st.LastSweep, st.Status = &now, d.Status })
	s.f.log.Info("swept", "trigger", trigger, "status", d.Status, "processes", d.Processes, "images", d.Images, "files", d.Files,
		"findings", len(d.Findings), "errors", len(d.Errors), "seconds", d.Timing.Total)
	for i, e := range d.Errors {
		if i == 10 {
			s.f.log.Warn("more could not be read", "errors", len(d.Errors)-i)
			break
		}
		s.f.log.Warn("not read in full", "what", e.What, "error", e.Error)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.swept = err == nil
	return err == nil, err
}

// request is what all scans of this guest have in common.
func (s *guestWatch) request() scan.Request {
	req := s.f.svc.opt.Request
	req.Looked, req.At = true, s.guest.Kernel().Place()
	return req
}

// scan has a scanner scan the guest through a source, and responds to what it finds.
func (s *guestWatch) scan(ctx context.Context, by scan.Scanner, src source.Source, req scan.Request, acc respond.Account) (finding.Scan, error) {
	o := &s.f.svc.opt
	d := s.f.current()
	t := scan.Target{Name: d.Name, UUID: d.UUID, State: d.State, Source: src, Domain: s.f}
	return respond.Scan(ctx, by, t, req, respond.Options{Policy: o.Policy, Kill: o.Kill, Profiles: o.Profiles,
		Kills: respond.KillLock(ctx, o.Runtime, d.UUID), Holder: &s.holds, Recorder: acc, Known: &s.reported, Observer: s})
}

// means are what this guest's scans are done with: urgent ones, of what is new, wait for no
// others.
func (s *guestWatch) means(urgent bool) scan.Means {
	svc := s.f.svc
	return scan.Means{Profiles: svc.opt.Profiles, Engine: slotted{svc.engine, svc.budget, urgent}, Memory: svc.opt.Results}
}

// Progress implements respond.Observer.
func (s *guestWatch) Progress(scan.Progress) {}

// Looked implements respond.Observer: it remembers an image that was looked at.
func (s *guestWatch) Looked(id introspect.Identity, image scan.ImageKey, whole bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if known := s.procs[id]; known != nil {
		if len(known.images) >= maxImages {
			clear(known.images) // it is looked at again
		}
		known.images[image] = whole
	}
}

// scanProcess sweeps what is new in one process: its program alone when it has just come,
// so that a verdict on it waits for nothing else, and then the rest.
func (s *guestWatch) scanProcess(ctx context.Context, p *tracked) error {
	steps := []bool{false}
	if p.step == 0 && !p.old {
		steps = []bool{true, false}
	}
	last, broke := p.old || p.step >= len(revisits)-1, ""
	for _, programOnly := range steps {
		s.guest.Refresh()
		now, _ := s.guest.ProcessAt(p.id.EPROCESS)
		if now.Identity() != p.id || !now.Exited.IsZero() {
			s.mu.Lock()
			p.ended, p.due = true, time.Time{}
			s.mu.Unlock()
			return nil
		}
		acc := s.f.svc.opt.Accounts.Account(s.f.name, s.f.uuid, false)
		d, err := s.scanNew(ctx, &now, p, programOnly, acc)
		if errors.Is(err, source.ErrGone) || errors.Is(err, source.ErrClosed) || ctx.Err() != nil && len(d.Findings) == 0 {
			return err
		}
		switch {
		case d.Reason != "":
			broke = d.Reason
		case !last || s.hasEnded(p.id):
			d.Errors = d.Errors[:0] // it is looked at again, or its end is why
		}
		s.conclude(ctx, acc, p, TriggerNew, &d)
		s.f.svc.count(func(c *Counts) { c.Incremental++; c.Errors += len(d.Errors) })
		for _, e := range d.Errors {
			s.f.log.Warn("not read in full", "what", e.What, "error", e.Error)
		}
		if err != nil {
			return err
		}
		if broke != "" {
			break
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if broke != "" && p.broken < maxBroken && !p.acted {
		p.after = time.Now().Add(brokenRetry << p.broken)
		p.broken, p.due = p.broken+1, p.after
		s.f.log.Warn("sweep of a process broke off; it is made again", "pid", p.id.PID, "process", p.name, "reason", broke)
		return nil
	}
	p.broken = 0
	if p.step++; p.step < len(revisits) && !p.old && !p.acted && p.due.IsZero() {
		p.due = later(p.first.Add(revisits[p.step]), time.Now().Add(time.Millisecond))
	}
	return nil
}

func (s *guestWatch) scanNew(ctx context.Context, now *introspect.Process, p *tracked, programOnly bool, acc respond.Account) (finding.Scan, error) {
	focus := scan.Focused{ID: p.id, Parent: subject.Parent(now, s.others()), Program: programOnly}
	s.mu.Lock()
	for image, whole := range p.images {
		if !programOnly && (whole || p.old || p.step >= len(revisits)) { // the rest of it is for sweeps of everything
			focus.Known = append(focus.Known, image)
		}
	}
	s.mu.Unlock()
	req := s.request()
	req.Focus = []scan.Focused{focus}
	return s.scan(ctx, s.kept, s.src, req, acc)
}

// hasEnded tells whether a process has ended by now.
func (s *guestWatch) hasEnded(id introspect.Identity) bool {
	st, err := s.guest.Recheck(id)
	return err != nil || st.Exiting
}

// moduleThere tells whether the module's device is there.
func (s *Service) moduleThere() bool {
	_, err := os.Stat(memhook.Device)
	return err == nil
}
