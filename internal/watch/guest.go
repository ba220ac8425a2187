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
	s := &guestWatch{f: f, src: src, guest: g, pulse: pulse, wake: make(chan struct{}, 1), hook: make(chan struct{}, 1),
		procs: make(map[introspect.Identity]*tracked)}
	s.kept = f.svc.opt.Scanners.Keep(s.means(true))
	return s, nil
}

// run watches. It returns why that ended.
func (s *guestWatch) run(ctx context.Context) error {
	s.f.mu.Lock()
	s.f.guest = s
	s.f.mu.Unlock()
	defer func() {
		s.f.mu.Lock()
		s.f.guest = nil
		s.f.mu.Unlock()
		s.kept.Close()
	}()
	if err := s.enumerate(ctx, true); err != nil {
		return err
	}
	k := s.guest.Kernel()
	s.f.set(func(st *DomainStatus) { st.State, st.Reason, st.Build = "watched", "", k.Version })
	ctx, cancel := context.WithCancelCause(ctx)
	var wg sync.WaitGroup
	part := func(f func(context.Context) error) {
		wg.Add(1)
		go func() {
			defer wg.Done()
			cancel(f(ctx))
		}()
	}
	part(s.look)
	part(s.sweepLoop)
	for range urgent {
		part(s.work)
	}
	s.hooks(ctx, &wg)
	<-ctx.Done()
	wg.Wait()
	s.holds.Release(warner{s.f.log})
	return context.Cause(ctx)
}

// others are the processes of the guest as they were a moment ago.
func (s *guestWatch) others() []introspect.Process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.list
}

// hooks has the module say when an address space is used that was not seen before. Where
// it cannot, looking at the lists does.
func (s *guestWatch) hooks(ctx context.Context, wg *sync.WaitGroup) {
	c, ok := s.src.(source.Controller)
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
		s.f.log.Warn("no hooks in the guest; it is looked at all the same", "error", err)
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
			case s.hook <- struct{}{}:
			default:
			}
		}
	}()
}

// look looks for what is new until something breaks.
func (s *guestWatch) look(ctx context.Context) error {
	o := &s.f.svc.opt
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
		case <-s.hook:
			hooked = true
		case <-s.f.poke:
		case <-t.C:
		}
		if s.f.wasReset() {
			return fmt.Errorf("%w: the guest was reset", errAgain)
		}
		now := time.Now()
		changed, err := s.pulse.Beat()
		if err == nil && changed {
			err = s.newcomers(ctx)
		}
		if err == nil && !now.Before(nextSpaces) {
			nextSpaces = now.Add(spacesEvery)
			err = s.moved()
		}
		// A hook tells of address spaces that no list may have.
		if err == nil && (!now.Before(nextAll) || hooked && now.After(nextAll.Add(hookedEvery-allEvery))) {
			nextAll = now.Add(allEvery)
			err = s.enumerate(ctx, false)
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
			if s.better(ctx) {
				return fmt.Errorf("%w: the module is there now", errAgain)
			}
		}
		interval = o.Poll
		if s.f.Paused() {
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
func (s *guestWatch) better(ctx context.Context) bool {
	if s.src.Info().Kind != source.KindQEMU || !s.f.svc.moduleThere() {
		return false
	}
	h, err := s.f.svc.host()
	if err != nil {
		return false
	}
	src, err := h.Open(ctx, s.f.current())
	if err != nil {
		return false
	}
	defer src.Close()
	return src.Info().Kind != source.KindQEMU
}

// newcomers takes up the processes at the end of the list.
func (s *guestWatch) newcomers(ctx context.Context) error {
	s.guest.Refresh()
	procs, _, err := s.guest.Newest(ctx, s.known)
	s.mu.Lock()
	if len(procs) > 0 && len(s.list) < maxListed {
		s.list = append(slices.Clone(s.list), procs...) // who reads the old one goes on doing so
	}
	s.mu.Unlock()
	for i := range procs {
		s.add(&procs[i], false)
	}
	return err
}

func (s *guestWatch) known(id introspect.Identity) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.procs[id] != nil
}

// add takes a process up that is not known yet.
func (s *guestWatch) add(p *introspect.Process, old bool) {
	id := p.Identity()
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.procs[id] != nil || len(s.procs) >= maxListed { // more is a lie; all says so
		return
	}
	n := &tracked{id: id, name: p.Name, first: now, old: old, ended: !p.Exited.IsZero(), images: make(map[scan.ImageKey]bool)}
	s.procs[id] = n
	if old || n.ended {
		return
	}
	n.due = now
	s.f.svc.count(func(c *Counts) { c.Newcomers++ })
	s.f.log.Debug("new process", "pid", p.PID, "process", p.Name)
	s.poke()
}

func (s *guestWatch) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// moved takes note of address spaces that changed and of processes that ended.
func (s *guestWatch) moved() error {
	c, err := s.pulse.Spaces()
	if err != nil {
		return err
	}
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range c.Exited {
		if p := s.procs[id]; p != nil {
			p.ended, p.due = true, time.Time{}
		}
	}
	for _, id := range c.Spaces {
		p := s.procs[id]
		// The sweep of everything sees to what was there when the watch began.
		if p == nil || p.ended || p.acted || p.old && !s.swept {
			continue
		}
		if p.due.IsZero() || p.due.After(now) {
			p.due = later(later(now, p.after), p.last.Add(max(minRescan, rescanEffort*p.took)))
		}
	}
	s.poke()
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
func (s *guestWatch) enumerate(ctx context.Context, first bool) error {
	s.guest.Refresh()
	procs, _, err := s.guest.Processes(ctx)
	if err != nil {
		return err
	}
	// What has only just come when the watch begins is still coming into memory.
	young := func(*introspect.Process) bool { return true }
	if first {
		now, err := s.guest.Time()
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
		s.add(p, !young(p))
		if p.Exited.IsZero() {
			living = append(living, id)
		}
	}
	s.mu.Lock()
	for id, p := range s.procs {
		if !there[id] && !p.busy {
			delete(s.procs, id)
		}
	}
	n := len(living)
	s.list = procs
	s.mu.Unlock()
	s.f.set(func(st *DomainStatus) { st.Processes = n })
	if !slices.ContainsFunc(living, func(id introspect.Identity) bool { return id.PID == 4 }) {
		return errors.New("the guest has no System process any more")
	}
	return s.pulse.Watch(living)
}

// next is the process whose time it is, marked busy, or how long there is none.
func (s *guestWatch) next() (*tracked, time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	wait := time.Hour
	var best *tracked
	for _, p := range s.procs {
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
func (s *guestWatch) work(ctx context.Context) error {
	t := time.NewTimer(time.Hour)
	defer t.Stop()
	for {
		p, wait := s.next()
		if p == nil {
			t.Reset(wait)
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-s.wake:
			case <-t.C:
			}
			continue
		}
		s.poke() // another one may be due, too
		begin := time.Now()
		err := s.scanProcess(ctx, p)
		s.mu.Lock()
		p.busy, p.last, p.took = false, time.Now(), time.Since(begin)
		s.mu.Unlock()
		if err != nil {
			return err
		}
	}
}
