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
// breaks or it starts anew.
type guestWatch struct {
	f     *follower
	src   source.Source
	guest *introspect.Guest // reads what is there now
	kept  scan.Kept         // scans what is new
	pulse *introspect.Pulse
	wake  chan struct{} // has one when a process is due
	hook  chan struct{} // has one when the module saw an address space

	reported respond.Known  // findings that were recorded
	holds    respond.Keeper // processes that are held

	mu    sync.Mutex
	procs map[introspect.Identity]*tracked
	swept bool                 // everything was, once
	list  []introspect.Process // as they were enumerated last
}

// tracked is what is known of one process of the guest.
type tracked struct {
	id     introspect.Identity
	name   string
	first  time.Time // seen
	old    bool      // there before the watch began
	due    time.Time // to be swept; zero for not
	step   int       // of revisits
	busy   bool
	ended  bool
	acted  bool                   // what a verdict asked for was done to it
	broken int                    // sweeps in a row that ended before their end
	after  time.Time              // not to be swept before, because of these
	last   time.Time              // sweep's end
	took   time.Duration          // by it
	images map[scan.ImageKey]bool // looked at, and whether all of the file was there
}

// revisits says when a new process is looked at again after it came: programs and their
// DLLs come into memory page by page while they run, and packers unpack.
var revisits = []time.Duration{0, 30 * time.Millisecond, 150 * time.Millisecond, 700 * time.Millisecond, 3 * time.Second, 10 * time.Second}

// Intervals of the watch of a guest.
const (
	spacesEvery  = 100 * time.Millisecond // address spaces are looked at
	allEvery     = 2 * time.Second        // processes are enumerated in full: hidden ones, too
	hookedEvery  = 500 * time.Millisecond // the same, where the module saw an address space
	pausedEvery  = time.Second            // anything at all, while the domain is paused
	betterEvery  = time.Minute            // the module is looked for, where it was not there
	minRescan    = 100 * time.Millisecond // between two sweeps of one process
	rescanEffort = 10                     // a process's sweeps take at most this part of the time
	urgent       = 2                      // processes in work at once
	maxFaults    = 100                    // failed looks in a row until the guest is opened anew
	maxListed    = 1 << 16                // processes of a guest
	maxImages    = 4096                   // of one process that are remembered
	brokenRetry  = 100 * time.Millisecond // until a sweep of a process that broke off is made again; twice as long each time
	maxBroken    = 6                      // of these in a row
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

// run watches. It returns why that ended.
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

// others are the processes of the guest as they were a moment ago.
func (w *guestWatch) others() []introspect.Process {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.list
}

// hooks has the module say when an address space is used that was not seen before. Where
// it cannot, looking at the lists does.
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
				return // a guest that has gone is noticed by those who read it
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
		// A hook tells of address spaces that no list may have.
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
		// Where a look is dear, half of the share at most goes into looking.
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

// better tells whether a guest that is read through QEMU can be read through the module by
// now.
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

// newcomers takes up the processes at the end of the list.
func (w *guestWatch) newcomers(ctx context.Context) error {
	w.guest.Refresh()
	procs, _, err := w.guest.Newest(ctx, w.known)
	w.mu.Lock()
	if len(procs) > 0 && len(w.list) < maxListed {
		w.list = append(slices.Clone(w.list), procs...) // who reads the old one goes on doing so
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

// add takes a process up that is not known yet.
func (w *guestWatch) add(p *introspect.Process, old bool) {
	id := p.Identity()
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.procs[id] != nil || len(w.procs) >= maxListed { // more is a lie; all says so
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

// moved takes note of address spaces that changed and of processes that ended.
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
		// The sweep of everything sees to what was there when the watch began.
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

// enumerate enumerates the processes in full: new ones that the pulse did not tell of, or that
// no list has, and those that are gone.
func (w *guestWatch) enumerate(ctx context.Context, first bool) error {
	w.guest.Refresh()
	procs, _, err := w.guest.Processes(ctx)
	if err != nil {
		return err
	}
	// What has only just come when the watch begins is still coming into memory.
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
			continue // not even its record could be read
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

// next is the process whose time it is, marked busy, or how long there is none.
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
		// Who was never looked at comes first, then who waits longest.
		if best == nil || p.step < best.step && p.step == 0 || p.due.Before(best.due) && (p.step > 0) == (best.step > 0) {
			best = p
		}
	}
	if best != nil {
		best.busy, best.due = true, time.Time{}
	}
	return best, wait
}

// work sweeps processes that are due.
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
		w.poke() // another one may be due, too
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
