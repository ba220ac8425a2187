package watch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/respond"
	"vmav.dev/vmav/internal/scan"
	"vmav.dev/vmav/internal/source"
)

// guestWatch watches one guest, from the moment that its kernel was found until its source
// breaks or it is reset.
type guestWatch struct {
	f     *follower
	src   source.Source
	guest *introspect.Guest // reads present memory
	kept  scan.Kept         // scans what is new
	pulse *introspect.Pulse
	wake  chan struct{} // holds a token when a process is due
	hook  chan struct{} // holds a token when the module saw a new address space

	reported respond.Known  // findings that were recorded
	holds    respond.Keeper // processes that are held

	mu    sync.Mutex
	procs map[introspect.Identity]*tracked
	swept bool                 // there was a complete sweep
	list  []introspect.Process // as they were last enumerated
}

// tracked is what the watch knows of one process of the guest.
type tracked struct {
	id     introspect.Identity
	name   string
	first  time.Time // when it was first seen
	old    bool      // it was there before the watch began
	due    time.Time // when it is to be scanned; zero for never
	step   int       // index into revisits
	busy   bool      // it is being scanned
	ended  bool
	acted  bool                   // a verdict's action was done to it
	broken int                    // scans of it in a row that broke off
	after  time.Time              // earliest time of the next scan after these
	last   time.Time              // end of the last scan of it
	took   time.Duration          // duration of that scan
	images map[scan.ImageKey]bool // images that were looked at, and whether all of the file was in memory
}

// revisits says when a new process is scanned again after it came. Programs and their DLLs
// come into memory page by page while they run, and packers unpack their code.
var revisits = []time.Duration{0, 30 * time.Millisecond, 150 * time.Millisecond, 700 * time.Millisecond, 3 * time.Second, 10 * time.Second}

// Intervals of the watch of a guest.
const (
	spacesEvery  = 100 * time.Millisecond // look at the address spaces
	allEvery     = 2 * time.Second        // enumerate all processes, including hidden ones
	hookedEvery  = 500 * time.Millisecond // the same, after the module saw a new address space
	pausedEvery  = time.Second            // look at anything, while the domain is paused
	betterEvery  = time.Minute            // look for the module, if it was not there
	minRescan    = 100 * time.Millisecond // between two scans of one process
	rescanEffort = 10                     // scans of a process take at most one part in this many of the time
	urgent       = 2                      // processes that are scanned at once
	maxFaults    = 100                    // failed looks in a row until the guest is opened again
	maxListed    = 1 << 16                // processes of a guest that are tracked
	maxImages    = 4096                   // images of one process that are remembered
	brokenRetry  = 100 * time.Millisecond // until a scan of a process that broke off is repeated; doubled each time
	maxBroken    = 6                      // scans in a row that break off
)

func newGuestWatch(f *follower, src source.Source, g *introspect.Guest) (*guestWatch, error) {
	pulse, err := g.NewPulse(src)
	if err != nil {
		return nil, err
	}
	w := &guestWatch{f: f, src: src, guest: g, pulse: pulse, wake: make(chan struct{}, 1), hook: make(chan struct{}, 1),
		procs: make(map[introspect.Identity]*tracked)}
	w.kept = f.svc.opt.Scanners.Keep(w.means(true))
	return w, nil
}

// run watches the guest. It returns why the watch ended.
func (w *guestWatch) run(ctx context.Context) error {
	w.f.mu.Lock()
	w.f.guest = w
	w.f.mu.Unlock()
	defer func() {
		w.f.mu.Lock()
		w.f.guest = nil
		w.f.mu.Unlock()
		w.kept.Close()
	}()
	if err := w.enumerate(ctx, true); err != nil {
		return err
	}
	k := w.guest.Kernel()
	w.f.set(func(st *DomainStatus) { st.State, st.Reason, st.Build = "watched", "", k.Version })
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	part := func(f func(context.Context) error) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			cancel(f(ctx))
		}()
	}
	part(w.look)
	part(w.sweepLoop)
	for range urgent {
		part(w.work)
	}
	w.hooks(ctx, &wg)
	<-ctx.Done()
	wg.Wait()
	w.holds.Release(warner{w.f.log})
	return context.Cause(ctx)
}

// others returns the processes of the guest as they were a moment ago.
func (w *guestWatch) others() []introspect.Process {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.list
}

// hooks asks the module to report when an address space is used that was not seen before.
// If the module cannot, the lists are looked at all the same.
func (w *guestWatch) hooks(ctx context.Context, wg *sync.WaitGroup) {
	c, ok := w.src.(source.Controller)
	if !ok {
		return
	}
	ctl, err := c.Control()
	if err == nil {
		if err = ctl.SetHooks(source.Hooks{NewDTB: true}); err != nil {
			ctl.Close()
		}
	}
	if err != nil {
		w.f.log.Warn("no hooks in the guest; it is looked at all the same", "error", err)
		return
	}
	wg.Add(1)
	go func() {
		defer wg.Done()
		defer ctl.Close()
		for {
			if _, err := ctl.Event(ctx); err != nil {
				return // the goroutines that read the guest notice if it has gone
			}
			select {
			case w.hook <- struct{}{}:
			default:
			}
		}
	}()
}

// look looks for what is new until something breaks.
func (w *guestWatch) look(ctx context.Context) error {
	o := &w.f.svc.opt
	interval := o.Poll
	t := time.NewTimer(interval)
	defer t.Stop()
	begin := time.Now()
	nextSpaces, nextAll, nextBetter := begin, begin.Add(allEvery), begin.Add(betterEvery)
	faults, cost := 0, time.Duration(0)
	for {
		hooked := false
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.hook:
			hooked = true
		case <-w.f.poke:
		case <-t.C:
		}
		if w.f.wasReset() {
			return fmt.Errorf("%w: the guest was reset", errAgain)
		}
		now := time.Now()
		changed, err := w.pulse.Beat()
		if err == nil && changed {
			err = w.newcomers(ctx)
		}
		if err == nil && !now.Before(nextSpaces) {
			nextSpaces = now.Add(spacesEvery)
			err = w.moved()
		}
		// A hook reports address spaces that may be in no list.
		if err == nil && (!now.Before(nextAll) || hooked && now.After(nextAll.Add(hookedEvery-allEvery))) {
			nextAll = now.Add(allEvery)
			err = w.enumerate(ctx, false)
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, source.ErrGone), errors.Is(err, source.ErrClosed), errors.Is(err, errAgain):
			return err
		case err != nil:
			if faults++; faults >= maxFaults {
				return fmt.Errorf("%w: %w", errAgain, err)
			}
		default:
			faults = 0
		}
		if now.After(nextBetter) {
			nextBetter = now.Add(betterEvery)
			if w.better(ctx) {
				return fmt.Errorf("%w: the module is there now", errAgain)
			}
		}
		interval = o.Poll
		if w.f.Paused() {
			interval = pausedEvery
		}
		// If a look is expensive, looking takes at most half of the share.
		cost = (7*cost + time.Since(now)) / 8
		if o.CPU > 0 {
			interval = max(interval, time.Duration(float64(2*cost)*100/o.CPU))
		}
		if faults > 0 {
			interval = max(interval, 20*time.Millisecond)
		}
		t.Reset(interval)
	}
}

// better reports whether a guest that is read through QEMU can now be read through the
// module.
func (w *guestWatch) better(ctx context.Context) bool {
	if w.src.Info().Kind != source.KindQEMU || !w.f.svc.moduleThere() {
		return false
	}
	h, err := w.f.svc.host()
	if err != nil {
		return false
	}
	src, err := h.Open(ctx, w.f.current())
	if err != nil {
		return false
	}
	defer src.Close()
	return src.Info().Kind != source.KindQEMU
}

// newcomers takes up the processes at the end of the guest's list.
func (w *guestWatch) newcomers(ctx context.Context) error {
	w.guest.Refresh()
	procs, _, err := w.guest.Newest(ctx, w.known)
	w.mu.Lock()
	if len(procs) > 0 && len(w.list) < maxListed {
		w.list = append(slices.Clone(w.list), procs...) // somebody may still read the old slice
	}
	w.mu.Unlock()
	for i := range procs {
		w.add(&procs[i], false)
	}
	return err
}

func (w *guestWatch) known(id introspect.Identity) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.procs[id] != nil
}

// add takes up a process that is not tracked yet.
func (w *guestWatch) add(p *introspect.Process, old bool) {
	id := p.Identity()
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.procs[id] != nil || len(w.procs) >= maxListed { // a guest with more lies
		return
	}
	n := &tracked{id: id, name: p.Name, first: now, old: old, ended: !p.Exited.IsZero(), images: make(map[scan.ImageKey]bool)}
	w.procs[id] = n
	if old || n.ended {
		return
	}
	n.due = now
	w.f.svc.count(func(c *Counts) { c.Newcomers++ })
	w.f.log.Debug("new process", "pid", p.PID, "process", p.Name)
	w.poke()
}

func (w *guestWatch) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// moved notes which address spaces changed and which processes ended.
func (w *guestWatch) moved() error {
	c, err := w.pulse.Spaces()
	if err != nil {
		return err
	}
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range c.Exited {
		if p := w.procs[id]; p != nil {
			p.ended, p.due = true, time.Time{}
		}
	}
	for _, id := range c.Spaces {
		p := w.procs[id]
		// The first sweep scans the processes that were there when the watch began.
		if p == nil || p.ended || p.acted || p.old && !w.swept {
			continue
		}
		if p.due.IsZero() || p.due.After(now) {
			p.due = later(later(now, p.after), p.last.Add(max(minRescan, rescanEffort*p.took)))
		}
	}
	w.poke()
	return nil
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// enumerate lists all processes. It takes up those that the pulse did not report or that
// are in no list, and drops those that are gone.
func (w *guestWatch) enumerate(ctx context.Context, first bool) error {
	w.guest.Refresh()
	procs, _, err := w.guest.Processes(ctx)
	if err != nil {
		return err
	}
	// A process that was new when the watch began is still coming into memory.
	young := func(*introspect.Process) bool { return true }
	if first {
		now, err := w.guest.Time()
		known := err == nil && !now.IsZero()
		young = func(p *introspect.Process) bool { return known && now.Sub(p.Created) < revisits[len(revisits)-1] }
	}
	there := make(map[introspect.Identity]bool, len(procs))
	var living []introspect.Identity
	for i := range procs {
		p := &procs[i]
		if slices.Contains(p.Flags, introspect.FlagPartial) && p.PID == 0 {
			continue // not even its EPROCESS could be read
		}
		id := p.Identity()
		there[id] = true
		w.add(p, !young(p))
		if p.Exited.IsZero() {
			living = append(living, id)
		}
	}
	w.mu.Lock()
	for id, p := range w.procs {
		if !there[id] && !p.busy {
			delete(w.procs, id)
		}
	}
	n := len(living)
	w.list = procs
	w.mu.Unlock()
	w.f.set(func(st *DomainStatus) { st.Processes = n })
	if !slices.ContainsFunc(living, func(id introspect.Identity) bool { return id.PID == 4 }) {
		return errors.New("the guest has no System process any more")
	}
	return w.pulse.Watch(living)
}

// next returns the process that is due, marked as busy. If there is none, it returns nil
// and the time to wait.
func (w *guestWatch) next() (*tracked, time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	wait := time.Hour
	var best *tracked
	for _, p := range w.procs {
		if p.busy || p.due.IsZero() {
			continue
		}
		if p.due.After(now) {
			wait = min(wait, p.due.Sub(now))
			continue
		}
		// A process that was never scanned comes first, then the one that waits longest.
		if best == nil || p.step < best.step && p.step == 0 || p.due.Before(best.due) && (p.step > 0) == (best.step > 0) {
			best = p
		}
	}
	if best != nil {
		best.busy, best.due = true, time.Time{}
	}
	return best, wait
}

// work scans processes that are due.
func (w *guestWatch) work(ctx context.Context) error {
	t := time.NewTimer(time.Hour)
	defer t.Stop()
	for {
		p, wait := w.next()
		if p == nil {
			t.Reset(wait)
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-w.wake:
			case <-t.C:
			}
			continue
		}
		w.poke() // another process may be due too
		begin := time.Now()
		err := w.scanProcess(ctx, p)
		w.mu.Lock()
		p.busy, p.last, p.took = false, time.Now(), time.Since(begin)
		w.mu.Unlock()
		if err != nil {
			return err
		}
	}
}
