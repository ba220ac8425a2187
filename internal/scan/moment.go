package scan

import (
	"context"
	"time"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/source"
)

// A running guest starts and ends processes while it is scanned. A new process is in the
// table of ids before its memory is there. A process that ends loses its memory before it
// leaves the list. What could not be read of such a process is not a gap in the scan: the
// scan looks at the process once more, and leaves it out if it has ended.

// moment is how long a scan waits before it looks once more. moments is how often it waits.
const (
	moment  = 50 * time.Millisecond
	moments = 20
)

// trouble is something of one process that could not be read.
type trouble struct {
	process introspect.Identity
	finding.Unread
}

// failIn notes an error that is about one process, or about none if p is nil. The caller
// does not hold the lock.
func (r *run) failIn(p *introspect.Process, what string, err error) {
	var id introspect.Identity
	if p != nil {
		id = p.Identity()
	}
	r.note([]introspect.Problem{{What: what, Err: err, Process: id}})
}

// note reports what could not be read. It keeps what is about one process until the end of
// the scan.
func (r *run) note(problems []introspect.Problem) {
	for _, p := range problems {
		if p.Process == (introspect.Identity{}) {
			r.unread(p.What, p.Err)
			continue
		}
		r.mu.Lock()
		if len(r.troubles) < finding.MaxErrors {
			r.troubles = append(r.troubles, trouble{p.Process, finding.Unread{What: p.What, Error: p.Err.Error()}})
		}
		r.mu.Unlock()
	}
}

// reportTroubles reports the troubles, except those of processes that have ended. It counts
// these processes.
func (r *run) reportTroubles() {
	if len(r.troubles) == 0 {
		return
	}
	now := r.now()
	ended := make(map[introspect.Identity]bool)
	for _, t := range r.troubles {
		over, known := ended[t.process]
		if !known {
			over = now.Ended(t.process)
			ended[t.process] = over
			if over {
				r.out.Ended++
			}
		}
		if !over {
			r.on.Unread(t.Unread)
		}
	}
	r.troubles = nil
}

// now returns the guest read without the source's cache.
func (r *run) now() *introspect.Guest { return r.guest.WithSource(source.Uncached(r.target.Source)) }

// pauseToRetry waits a moment before something is looked at once more. It returns false if
// another look is of no use: the guest is paused, or the scan has waited often enough.
func (r *run) pauseToRetry(ctx context.Context) bool {
	if r.target.paused() || r.waits == moments {
		return false
	}
	r.waits++
	select {
	case <-ctx.Done():
		return false
	case <-time.After(moment):
		return true
	}
}

// processes lists the processes of the guest. If there were problems, it lists them once
// more.
func (r *run) processes(ctx context.Context) ([]introspect.Process, []introspect.Problem, error) {
	procs, problems, err := r.guest.Processes(ctx)
	if err != nil || len(problems) == 0 || !r.pauseToRetry(ctx) {
		return procs, problems, err
	}
	if more, fewer, err := r.now().Processes(ctx); err == nil && len(fewer) < len(problems) {
		return more, fewer, nil
	}
	return procs, problems, ctx.Err()
}

// ranges lists the images and the address space of a process. If there were problems, it
// lists them once more and brings p up to date.
func (r *run) ranges(ctx context.Context, p *introspect.Process) ([]introspect.Module, []introspect.VAD, []introspect.Problem, error) {
	mods, vads, problems, err := r.guest.ModulesAndVADs(ctx, p)
	if err != nil || len(problems) == 0 || !r.pauseToRetry(ctx) {
		return mods, vads, problems, err
	}
	now := r.now()
	if now.Ended(p.Identity()) {
		return mods, vads, problems, nil // reportTroubles leaves them out
	}
	again, _ := now.ProcessAt(p.EPROCESS)
	p.PEB, p.PEB32, p.Wow64, p.CommandLine, p.Path = again.PEB, again.PEB32, again.Wow64, again.CommandLine, again.Path
	return now.ModulesAndVADs(ctx, p)
}
