package worker

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"vmav.dev/vmav/internal/clam"
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/sweep"
	"vmav.dev/vmav/internal/winstruct"
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

// Runner sweeps guests, each in a worker of its own. The zero Runner is ready to use, by
// several at once.
type Runner struct {
	User    string        // that workers of root run as; "" for User, and nobody where there is none
	Memory  uint64        // bytes that a worker may map; 0 for DefaultMemory
	Silence time.Duration // a worker that asks for nothing in this time is stuck; 0 for DefaultSilence
	Total   time.Duration // for one guest, whatever it is doing; 0 for DefaultTotal
	// Note, unless nil, is told once what this host's sandbox lacks, and of each worker
	// that ended by itself while it waited for work. Several may call it at once.
	Note func(string)

	Rest time.Duration // a kept worker ends when it had no work in this time; 0 for DefaultRest

	once sync.Once
	args []string // further arguments of the worker
	pool pool
}

// Domain sweeps a guest in a worker, with a Runner of defaults.
func Domain(ctx context.Context, t sweep.Target, profiles winstruct.Finder, engine sweep.Scanner, memory sweep.Memory, opt sweep.Options) (finding.Scan, error) {
	return new(Runner).Domain(ctx, t, profiles, engine, memory, opt)
}

// Domain is sweep.Domain, with all that parses what the guest wrote in a worker. A worker
// that ends early costs the rest of this sweep: what it had reported until then is in the
// result, which says how it ended and is not complete. Of the options, Open is for the
// broker alone, which reads the guest to carry verdicts out, and tells the worker where its
// kernel is; Pace is not heeded.
func (r *Runner) Domain(ctx context.Context, t sweep.Target, profiles winstruct.Finder, engine sweep.Scanner, memory sweep.Memory, opt sweep.Options) (finding.Scan, error) {
	return (&Kept{r: r, once: true}).domain(ctx, t, profiles, engine, memory, opt)
}

func newSession(t sweep.Target, profiles winstruct.Finder, engine sweep.Scanner, cache sweep.Session, opt sweep.Options) *session {
	// A worker has a cache of its own.
	s := &session{target: t, src: source.Uncached(t.Source), profiles: profiles, engine: engine, cache: cache, opt: opt,
		judge: sweep.NewJudge(t, opt), infected: make(map[[32]byte]string), over: make(chan struct{})}
	s.out, s.mu = s.judge.Result()
	s.budget.Store(maxContent)
	return s
}

// work has a worker do a job.
func (r *Runner) work(ctx context.Context, p *process, s *session, job []byte) {
	silence, total := r.Silence, r.Total
	if silence == 0 {
		silence = DefaultSilence
	}
	if total == 0 {
		total = DefaultTotal
	}
	p.do(ctx, s, job, silence, total)
	if s.control != nil {
		s.control.Close() // what is pending is cancelled
	}
}

// conclude makes the result of what came. Nobody else uses the session any more.
func (s *session) conclude(ctx context.Context, p *process) error {
	if s.done {
		s.result.adopt(s.out)
		if s.result.Ended == "" {
			return nil
		}
		if s.fatal != nil { // what ended it came through here
			return s.fatal
		}
		return &remoteError{text: s.result.Ended}
	}
	why := p.why()
	s.out.Status, s.out.Reason = finding.StatusIncomplete, why.Error()
	if s.progress == 0 && len(s.out.Findings) == 0 {
		s.out.Status = finding.StatusFailed
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if s.out.Status == finding.StatusIncomplete {
		s.out.Fail("worker", why)
	}
	if errors.Is(s.fatal, clam.ErrEngineGone) {
		return s.fatal
	}
	return nil
}

// note tells once what the sandbox lacks on this host.
func (r *Runner) note(abi int) {
	if r.Note == nil || abi > 0 {
		return
	}
	r.once.Do(func() {
		r.Note("this kernel has no Landlock: only the filter of system calls keeps workers from files and the network")
	})
}

// session is one sweep, seen from the broker.
type session struct {
	target   sweep.Target
	src      source.Source
	profiles winstruct.Finder
	engine   sweep.Scanner
	cache    sweep.Session
	opt      sweep.Options
	ctx      context.Context // ends with the job
	over     chan struct{}   // closed when the worker has reported the result
	budget   atomic.Int64    // bytes of content that may still be kept

	mu        *sync.Mutex // the judge's
	out       *finding.Scan
	judge     *sweep.Judge
	infected  map[[32]byte]string // what the engine said of contents of this guest
	user      string              // that the worker runs as; "" for the broker's own
	abi       int                 // of Landlock
	taken     bool                // the job is, by a worker that is sandboxed
	control   source.Control      // of page-ins
	pageIns   int
	waiting   sync.Mutex        // held by who waits for an event
	near      []winstruct.Entry // as the worker was told
	reported  int               // bytes
	images    int               // that were seen
	overflown bool              // more findings than are kept
	progress  int
	charged   [lastKind + 1]int // questions, by kind
	result    result
	done      bool
	fatal     error // what no sweep goes on after: the guest or the engine is gone
}

// greeted notes whose rights the worker has that took the job.
func (s *session) greeted(user string, abi int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken, s.user, s.abi = true, user, abi
}

// act carries out the verdicts. This reads the guest here, in the broker: its kernel's
// lists and ntdll's exports, but no file of a process.
func (s *session) act(ctx context.Context) error {
	var g *introspect.Guest
	if s.judge.Reads() {
		var err error
		if g, err = s.guest(ctx); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			s.out.Fail("carry out verdicts", err)
			return nil
		}
	}
	s.judge.Act(ctx, g)
	return ctx.Err()
}

// guest is the guest as the broker reads it.
func (s *session) guest(ctx context.Context) (*introspect.Guest, error) {
	if s.opt.Open != nil {
		return s.opt.Open(ctx)
	}
	return introspect.Open(ctx, s.target.Source, s.profiles)
}
