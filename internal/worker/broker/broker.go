package broker

import (
	"context"
	"errors"
	"sync"
	"time"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/scan"
)

// Errors of a scan whose worker ended before its end. Test for them with errors.Is.
var (
	// ErrViolation reports that the kernel killed the worker for a system call that no
	// worker makes. The worker had been taken over, or vmav has a bug.
	ErrViolation = errors.New("the worker made a system call that no worker makes, and was ended: it may have been taken over by the guest")
	// ErrMisbehaved reports that the broker killed the worker because it sent something
	// that no worker sends.
	ErrMisbehaved = errors.New("the worker does not keep to the protocol, and was ended: it may have been taken over by the guest")
	// ErrNoSandbox reports that no sandbox could be made, so nothing was read.
	ErrNoSandbox = errors.New("the worker could not be sandboxed, so nothing was read (--no-sandbox does without)")
	// ErrStuck reports that the broker killed the worker because it was silent or at work
	// for too long.
	ErrStuck = errors.New("the worker was ended")
)

// Defaults of a Runner.
const (
	DefaultMemory  = 4 << 30 // bytes
	DefaultSilence = 2 * time.Minute
	DefaultTotal   = 12 * time.Hour
)

// Runner runs workers, which scan guests. The zero Runner is ready to use, also by several
// goroutines at once.
type Runner struct {
	User    string        // user that root's workers run as; "" for User, or nobody if there is no such user
	Memory  uint64        // bytes that a worker may map; 0 for DefaultMemory
	Silence time.Duration // a worker that asks for nothing for this long is stuck; 0 for DefaultSilence
	Total   time.Duration // bound on one job, whatever the worker does; 0 for DefaultTotal
	// Notes is told once what this host's sandbox lacks, and of each worker that ended by
	// itself while it waited for work. It may be nil.
	Notes Notes

	Rest time.Duration // a kept worker ends after this time without work; 0 for DefaultRest

	// Args are further arguments of the worker's command line, which inside.Main ignores.
	// Tests use them to run other code in place of a worker.
	Args []string

	once sync.Once
	pool pool
}

// Notes is told what an operator should know of workers. Several goroutines may call it at
// once.
type Notes interface {
	Note(text string)
}

// Scanner returns a scanner that scans each guest in a worker of its own. If a worker ends
// early, the rest of its scan is lost. What it had reported remains, and the result says
// how it ended and is not complete.
func (r *Runner) Scanner(m scan.Means) scan.Scanner { return &oneShot{r, m} }

// oneShot implements scan.Scanner with a new worker for each scan.
type oneShot struct {
	r *Runner
	m scan.Means
}

// Scan implements scan.Scanner.
func (o *oneShot) Scan(ctx context.Context, t scan.Target, req scan.Request, on scan.Events) (finding.Scan, error) {
	k := &Kept{r: o.r, m: o.m, single: true}
	return k.Scan(ctx, t, req, on)
}

// work lets a worker do a job, within the bounds of the Runner.
func (r *Runner) work(ctx context.Context, c *child, j *job) {
	silence, total := r.Silence, r.Total
	if silence == 0 {
		silence = DefaultSilence
	}
	if total == 0 {
		total = DefaultTotal
	}
	c.do(ctx, j, silence, total)
	if j.control != nil {
		j.control.Close() // cancels what is pending
	}
}

// noteLandlock tells once what the sandbox lacks on this host.
func (r *Runner) noteLandlock(abi int) {
	if r.Notes == nil || abi > 0 {
		return
	}
	r.once.Do(func() {
		r.Notes.Note("this kernel has no Landlock: only the filter of system calls keeps workers from files and the network")
	})
}
