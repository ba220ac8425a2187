package broker

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/scan"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/worker/wire"
)

// Bounds on workers that wait for work.
const (
	// DefaultRest is how long a worker waits for work. A new worker has to start a process
	// and find the guest's kernel before it looks at anything.
	DefaultRest = 5 * time.Minute
	maxResting  = 16 // for all guests; if there are more, those that have waited longest end
)

// After a worker has died, the next one is started at once. If that dies too, further ones
// are started ever more slowly, until no worker has died for a while: a guest may know how
// to kill them.
const (
	firstDelay  = 50 * time.Millisecond
	lastDelay   = 2 * time.Second
	forgetAfter = time.Minute
)

// Kept scans one guest again and again in workers that live on between the scans. Such a
// scan needs neither a new process nor a search for the kernel. Several scans may run at
// once, each in a worker of its own. What a worker may do in one scan is bounded as for a
// worker that does only one, and what it reports concerns only that guest.
//
// The end of a worker ends the scan that is under way, as with Runner.Scanner. The next
// scan gets another worker. The guest's source must outlive the Kept.
type Kept struct {
	r      *Runner
	m      scan.Means
	single bool // it does one scan only

	mu     sync.Mutex
	deaths int       // number of deaths, each soon after the one before
	last   time.Time // time of the last death
}

// Keep returns a Kept for one guest and for scans that are focused on some processes. The
// first scan starts the first worker. Scans of everything belong to Scanner: they take
// long, and need more memory than a kept worker should hold. The caller closes the Kept.
func (r *Runner) Keep(m scan.Means) scan.Kept { return &Kept{r: r, m: m} }

// Scan implements scan.Scanner. The target's source must be the same in each call.
func (k *Kept) Scan(ctx context.Context, t scan.Target, req scan.Request, on scan.Events) (finding.Scan, error) {
	if req.Jobs <= 0 {
		req.Jobs = scan.DefaultJobs
	}
	return k.run(ctx, newJob(t, k.m, scoped(k.m.Memory, t).For(ctx, k.m.Engine), req, on))
}

// run lets a worker do a job. It returns the error of Scan.
func (k *Kept) run(ctx context.Context, j *job) (finding.Scan, error) {
	failed := func(err error) finding.Scan {
		d := scan.Empty(j.target)
		d.Reason = err.Error()
		return d
	}
	if err := j.encode(); err != nil {
		return failed(err), nil
	}
	c, err := k.takeWorker(ctx, j)
	if err != nil {
		return failed(err), ctx.Err()
	}
	k.r.work(ctx, c, j)
	d, err := j.conclude(ctx, c)
	switch {
	case j.done && k.single:
		c.stop()
	case j.done && c.living():
		k.putBack(c)
	case j.done:
		k.end(c)
	default:
		if ctx.Err() == nil {
			k.died()
		}
		c.stop()
	}
	return d, err
}

// takeWorker returns a worker for a job: one that waits for work, or a new one.
func (k *Kept) takeWorker(ctx context.Context, j *job) (*child, error) {
	for {
		c := k.r.takeResting(k)
		if c == nil {
			break
		}
		if c.living() && c.src == j.src {
			return c, nil
		}
		k.end(c)
	}
	if err := k.pause(ctx); err != nil {
		return nil, err
	}
	c, err := k.r.start(k, j.src, j.req.Jobs)
	if err != nil {
		k.died()
	}
	return c, err
}

// end ends a worker that has nothing to do. If the worker has ended by itself or had to be
// ended, Notes is told of it.
func (k *Kept) end(c *child) {
	if !c.living() {
		k.died()
		if k.r.Notes != nil {
			k.r.Notes.Note(fmt.Sprintf("between two scans of a guest: %v", c.endReason()))
		}
	}
	c.stop()
}

// putBack puts a worker among those that wait for work.
func (k *Kept) putBack(c *child) {
	for _, old := range k.r.addResting(c) {
		old.kept.end(old)
	}
}

// Close ends the guest's workers. No scan may be under way or follow.
func (k *Kept) Close() {
	for c := k.r.takeResting(k); c != nil; c = k.r.takeResting(k) {
		k.end(c)
	}
}

// died notes the death of a worker.
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

// delay returns how long after the last of a number of deaths in a row the next worker may
// start.
func delay(deaths int) time.Duration {
	if deaths < 2 {
		return 0
	}
	return min(firstDelay<<min(deaths-2, 10), lastDelay)
}

// pool is the workers of a Runner.
type pool struct {
	mu      sync.Mutex
	living  map[*child]bool
	resting []*child // the worker that has waited longest comes first
}

// addResting puts a worker among those that wait for work. It returns those that are too
// many.
func (r *Runner) addResting(c *child) (tooMany []*child) {
	rest := r.Rest
	if rest == 0 {
		rest = DefaultRest
	}
	r.pool.mu.Lock()
	defer r.pool.mu.Unlock()
	c.alarm = time.AfterFunc(rest, func() {
		if r.removeResting(c) {
			c.kept.end(c)
		}
	})
	all := append(r.pool.resting, c)
	if n := len(all) - maxResting; n > 0 {
		tooMany, all = slices.Clone(all[:n]), slices.Delete(all, 0, n)
	}
	for _, c := range tooMany {
		c.alarm.Stop()
	}
	r.pool.resting = all
	return tooMany
}

// takeResting takes the worker of k that was used last. It returns nil if none waits.
func (r *Runner) takeResting(k *Kept) *child {
	r.pool.mu.Lock()
	defer r.pool.mu.Unlock()
	for i, c := range slices.Backward(r.pool.resting) {
		if c.kept == k {
			r.pool.resting = slices.Delete(r.pool.resting, i, i+1)
			c.alarm.Stop()
			return c
		}
	}
	return nil
}

// removeResting removes a worker from those that wait. It reports whether it was one of
// them.
func (r *Runner) removeResting(c *child) bool {
	r.pool.mu.Lock()
	defer r.pool.mu.Unlock()
	i := slices.Index(r.pool.resting, c)
	if i >= 0 {
		r.pool.resting = slices.Delete(r.pool.resting, i, i+1)
	}
	return i >= 0
}

// Used returns the processor time of the living workers. The time of workers that have
// ended is in the account of this process's children.
func (r *Runner) Used() (sum time.Duration) {
	r.pool.mu.Lock()
	defer r.pool.mu.Unlock()
	for c := range r.pool.living {
		sum += c.used()
	}
	return sum
}

// start starts a worker for a guest.
func (r *Runner) start(k *Kept, src source.Source, jobs int) (*child, error) {
	memory := r.Memory
	if memory == 0 {
		memory = DefaultMemory
	}
	c, err := start(min(jobs+1, wire.MaxLanes), memory, r.User, src, r.Args)
	if err != nil {
		return nil, err
	}
	c.kept, c.note = k, r.noteLandlock
	r.pool.mu.Lock()
	if r.pool.living == nil {
		r.pool.living = make(map[*child]bool)
	}
	r.pool.living[c] = true
	r.pool.mu.Unlock()
	c.begin()
	go func() {
		<-c.exited
		r.pool.mu.Lock()
		delete(r.pool.living, c)
		r.pool.mu.Unlock()
	}()
	return c, nil
}
