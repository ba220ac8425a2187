package worker

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/sweep"
	"vmav.dev/vmav/internal/winstruct"
)

// Bounds on workers that wait for work.
const (
	// DefaultRest is how long one waits: the next one has a process to start and the
	// guest's kernel to find before it looks at anything.
	DefaultRest = 5 * time.Minute
	maxResting  = 16 // of all guests; more end who has waited longest
)

// After a worker has died the next one is started at once; if that dies, too, the others
// come ever more slowly, until there was no death for a while: a guest may know how to
// kill them.
const (
	firstDelay  = 50 * time.Millisecond
	lastDelay   = 2 * time.Second
	forgetAfter = time.Minute
)

// Kept sweeps one guest again and again in a worker that lives on between the sweeps: each
// costs neither a process nor a search for the kernel. It is for several sweeps at once,
// which have a worker each. All that a worker may do in one sweep is bounded as it is for a
// worker of one sweep alone, and what it reports is of that guest alone.
//
// A worker's end costs the sweep under way, as it does with Runner.Domain; the next sweep
// has another one. The guest's source outlives the Kept, which its owner closes.
type Kept struct {
	r    *Runner
	once bool // it is for one sweep

	mu     sync.Mutex
	deaths int       // one soon after the other
	last   time.Time // of them
}

// Keep makes a Kept of a guest. No worker is started before the first sweep.
func (r *Runner) Keep() *Kept { return &Kept{r: r} }

// Domain has the shape of Runner.Domain. A sweep that is focused on some processes
// (sweep.Options.Focus) has a worker that is kept; one of everything takes long, and more
// memory than is to be kept, and has a worker of its own. The target's source is the same
// in each.
func (k *Kept) Domain(ctx context.Context, t sweep.Target, profiles winstruct.Finder, engine sweep.Scanner, memory sweep.Memory, opt sweep.Options) (finding.Scan, error) {
	if opt.Focus == nil {
		return k.r.Domain(ctx, t, profiles, engine, memory, opt)
	}
	return k.domain(ctx, t, profiles, engine, memory, opt)
}

// domain makes one sweep.
func (k *Kept) domain(ctx context.Context, t sweep.Target, profiles winstruct.Finder, engine sweep.Scanner, memory sweep.Memory, opt sweep.Options) (finding.Scan, error) {
	if opt.Jobs <= 0 {
		opt.Jobs = 2
	}
	begin := time.Now()
	s := newSession(t, profiles, engine, scoped(memory, t).Session(ctx, engine), opt)
	err := k.run(ctx, s)
	if err == nil {
		err = s.act(ctx)
	}
	sweep.SortFindings(s.out.Findings)
	if s.out.Status == finding.StatusScanned && (len(s.out.Errors) > 0 || err != nil) {
		s.out.Status = finding.StatusIncomplete
	}
	s.out.Timing.Total = time.Since(begin).Seconds()
	return *s.out, err
}

// run has a worker do a session's job. The error is sweep.Domain's.
func (k *Kept) run(ctx context.Context, s *session) error {
	job, err := s.job(ctx)
	if err != nil {
		s.out.Reason = err.Error()
		return nil
	}
	p, err := k.take(ctx, s)
	if err != nil {
		s.out.Reason = err.Error()
		return ctx.Err()
	}
	k.r.work(ctx, p, s, job)
	err = s.conclude(ctx, p)
	switch {
	case s.done && k.once:
		p.stop()
	case s.done && p.living():
		k.give(p)
	case s.done:
		k.end(p)
	default:
		if ctx.Err() == nil {
			k.died()
		}
		p.stop()
	}
	return err
}

// take is a worker for a session: one that waits for work, or another one.
func (k *Kept) take(ctx context.Context, s *session) (*process, error) {
	for {
		p := k.r.rested(k)
		if p == nil {
			break
		}
		if p.living() && p.src == s.src {
			return p, nil
		}
		k.end(p)
	}
	if err := k.pause(ctx); err != nil {
		return nil, err
	}
	p, err := k.r.start(k, s.src, s.opt.Jobs)
	if err != nil {
		k.died()
	}
	return p, err
}

// end ends a worker that has nothing to do. One that has ended by itself, or had to be
// ended, is worth a word: nothing asked it to.
func (k *Kept) end(p *process) {
	if !p.living() {
		k.died()
		if k.r.Note != nil {
			k.r.Note(fmt.Sprintf("between two sweeps of a guest: %v", p.why()))
		}
	}
	p.stop()
}

// give puts a worker among those that wait for work.
func (k *Kept) give(p *process) {
	for _, old := range k.r.rest(p) {
		old.kept.end(old)
	}
}

// Close ends the guest's workers. No sweep is under way, and none comes.
func (k *Kept) Close() {
	for p := k.r.rested(k); p != nil; p = k.r.rested(k) {
		k.end(p)
	}
}

// died notes a death.
func (k *Kept) died() {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	if now.Sub(k.last) > forgetAfter {
		k.deaths = 0
	}
	k.deaths, k.last = k.deaths+1, now
}

// pause waits until the next worker may be started.
func (k *Kept) pause(ctx context.Context) error {
	k.mu.Lock()
	wait := delay(k.deaths) - time.Since(k.last)
	k.mu.Unlock()
	if wait <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// delay is how long after the last of so many deaths in a row the next worker may start.
func delay(deaths int) time.Duration {
	if deaths < 2 {
		return 0
	}
	return min(firstDelay<<min(deaths-2, 10), lastDelay)
}

// pool is the workers of a Runner.
type pool struct {
	mu      sync.Mutex
	living  map[*process]bool
	resting []*process // who has waited longest comes first
}

// rest puts a worker among those that wait for work, and returns those that are too many.
func (r *Runner) rest(p *process) (tooMany []*process) {
	rest := r.Rest
	if rest == 0 {
		rest = DefaultRest
	}
	r.pool.mu.Lock()
	defer r.pool.mu.Unlock()
	p.alarm = time.AfterFunc(rest, func() {
		if r.leave(p) {
			p.kept.end(p)
		}
	})
	all := append(r.pool.resting, p)
	if n := len(all) - maxResting; n > 0 {
		tooMany, all = slices.Clone(all[:n]), slices.Delete(all, 0, n)
	}
	for _, p := range tooMany {
		p.alarm.Stop()
	}
	r.pool.resting = all
	return tooMany
}

// rested takes the worker of k that worked last, nil where none waits.
func (r *Runner) rested(k *Kept) *process {
	r.pool.mu.Lock()
	defer r.pool.mu.Unlock()
	for i, p := range slices.Backward(r.pool.resting) {
		if p.kept == k {
			r.pool.resting = slices.Delete(r.pool.resting, i, i+1)
			p.alarm.Stop()
			return p
		}
	}
	return nil
}

// leave takes a worker out of those that wait, and tells whether it was one.
func (r *Runner) leave(p *process) bool {
	r.pool.mu.Lock()
	defer r.pool.mu.Unlock()
	i := slices.Index(r.pool.resting, p)
	if i >= 0 {
		r.pool.resting = slices.Delete(r.pool.resting, i, i+1)
	}
	return i >= 0
}

// Used is the processor time that the living workers took. That of those that have ended
// is in the broker's account of its children.
func (r *Runner) Used() (sum time.Duration) {
	r.pool.mu.Lock()
	defer r.pool.mu.Unlock()
	for p := range r.pool.living {
		sum += p.used()
	}
	return sum
}

// start starts a worker for a guest.
func (r *Runner) start(k *Kept, src source.Source, jobs int) (*process, error) {
	memory := r.Memory
	if memory == 0 {
		memory = DefaultMemory
	}
	p, err := start(min(jobs+1, maxLanes), memory, r.User, src, r.args)
	if err != nil {
		return nil, err
	}
	p.kept, p.note = k, r.note
	r.pool.mu.Lock()
	if r.pool.living == nil {
		r.pool.living = make(map[*process]bool)
	}
	r.pool.living[p] = true
	r.pool.mu.Unlock()
	p.begin()
	go func() {
		<-p.exited
		r.pool.mu.Lock()
		delete(r.pool.living, p)
		r.pool.mu.Unlock()
	}()
	return p, nil
}
