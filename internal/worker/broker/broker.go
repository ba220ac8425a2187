package broker

import (
	"context"
	"errors"
	"sync"
	"time"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/scan"
)

// Errors of a scan that a worker did not live to finish; test with errors.Is.
var (
	// ErrViolation reports a worker that the kernel ended for a system call that no
	// worker makes: it had been taken over, or there is a mistake in vmav.
	ErrViolation = errors.New("the worker made a system call that no worker makes, and was ended: it may have been taken over by the guest")
	// ErrMisbehaved reports a worker that was ended because what it sent is nothing that
	// a worker sends.
	ErrMisbehaved = errors.New("the worker does not keep to the protocol, and was ended: it may have been taken over by the guest")
	// ErrNoSandbox reports that no sandbox could be made, so that nothing was read.
	ErrNoSandbox = errors.New("the worker could not be sandboxed, so nothing was read (--no-sandbox does without)")
	// ErrStuck reports a worker that was ended because it was silent or at work for too
	// long.
	ErrStuck = errors.New("the worker was ended")
)

// Defaults of a Runner.
const (
	DefaultMemory  = 4 << 30 // bytes
	DefaultSilence = 2 * time.Minute
	DefaultTotal   = 12 * time.Hour
)

// Runner runs workers, which scan guests. The zero Runner is ready to use, by several at
// once.
type Runner struct {
	User    string        // that workers of root run as; "" for User, and nobody where there is none
	Memory  uint64        // bytes that a worker may map; 0 for DefaultMemory
	Silence time.Duration // a worker that asks for nothing in this time is stuck; 0 for DefaultSilence
	Total   time.Duration // for one guest, whatever it is doing; 0 for DefaultTotal
	// Notes, unless nil, is told once what this host's sandbox lacks, and of each worker
	// that ended by itself while it waited for work.
	Notes Notes

	Rest time.Duration // a kept worker ends when it had no work in this time; 0 for DefaultRest

	// Args are further arguments of the worker's command line, which inside.Main does not look
	// at. Tests put other code in a worker's place by them.
	Args []string

	once sync.Once
	pool pool
}

// Notes is told what an operator should know of workers. Several goroutines may call it at
// once.
type Notes interface {
	Note(text string)
}

// Scanner makes a scanner that scans each guest in a worker of its own. A worker that ends
// early costs the rest of its scan: what it had reported until then was told of, the result
// says how it ended, and is not complete.
func (r *Runner) Scanner(m scan.Means) scan.Scanner { return &oneShot{r, m} }

// oneShot implements scan.Scanner for scans that have a worker each.
type oneShot struct {
	r *Runner
	m scan.Means
}

// Scan implements scan.Scanner.
func (o *oneShot) Scan(ctx context.Context, t scan.Target, req scan.Request, on scan.Events) (finding.Scan, error) {
	k := &Kept{r: o.r, m: o.m, single: true}
	return k.Scan(ctx, t, req, on)
}

// work has a worker do a job.
func (r *Runner) work(ctx context.Context, c *child, j *job, text []byte) {
	silence, total := r.Silence, r.Total
	if silence == 0 {
		silence = DefaultSilence
	}
	if total == 0 {
		total = DefaultTotal
	}
	c.do(ctx, task{j, text}, silence, total)
	if j.control != nil {
		j.control.Close() // what is pending is cancelled
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
