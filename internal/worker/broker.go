package worker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"vmav.dev/vmav/internal/clam"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/report"
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
	// Note, unless nil, is told once what this host's sandbox lacks.
	Note func(string)

	once sync.Once
	args []string // further arguments of the worker
}

// Domain sweeps a guest in a worker, with a Runner of defaults.
func Domain(ctx context.Context, t sweep.Target, profiles winstruct.Finder, engine sweep.Scanner, memory sweep.Memory, opt sweep.Options) (report.DomainScan, error) {
	return new(Runner).Domain(ctx, t, profiles, engine, memory, opt)
}

// Domain is sweep.Domain, with all that parses what the guest wrote in a worker. A worker
// that ends early costs the rest of this sweep: what it had reported until then is in the
// result, which says how it ended and is not complete.
func (r *Runner) Domain(ctx context.Context, t sweep.Target, profiles winstruct.Finder, engine sweep.Scanner, memory sweep.Memory, opt sweep.Options) (report.DomainScan, error) {
	if opt.Jobs <= 0 {
		opt.Jobs = 2
	}
	begin := time.Now()
	s := r.session(t, profiles, engine, scoped(memory, t).Session(ctx, engine), opt)
	err := r.run(ctx, s)
	if err == nil {
		err = s.act(ctx)
	}
	sweep.SortFindings(s.out.Findings)
	if s.out.Status == report.StatusScanned && (len(s.out.Errors) > 0 || err != nil) {
		s.out.Status = report.StatusIncomplete
	}
	s.out.Timing.Total = time.Since(begin).Seconds()
	return *s.out, err
}

func (r *Runner) session(t sweep.Target, profiles winstruct.Finder, engine sweep.Scanner, cache sweep.Session, opt sweep.Options) *session {
	src := t.Source
	if c, ok := src.(*source.Cache); ok {
		src = c.Source // the worker has one of its own
	}
	s := &session{target: t, src: src, profiles: profiles, engine: engine, cache: cache, opt: opt,
		judge: sweep.NewJudge(t, opt), infected: make(map[[32]byte]string)}
	s.out, s.mu = s.judge.Result()
	s.budget.Store(maxContent)
	return s
}

// run has a worker sweep the guest. The error is sweep.Domain's.
func (r *Runner) run(ctx context.Context, s *session) error {
	memory, silence, total := r.Memory, r.Silence, r.Total
	if memory == 0 {
		memory = DefaultMemory
	}
	if silence == 0 {
		silence = DefaultSilence
	}
	if total == 0 {
		total = DefaultTotal
	}
	p, err := start(min(s.opt.Jobs+1, maxLanes), memory, r.User, s.src, r.args)
	if err != nil {
		s.out.Reason = err.Error()
		return ctx.Err()
	}
	defer p.release()
	s.user, s.note = p.user, r.note
	work, cancel := context.WithCancel(ctx)
	defer cancel()
	s.ctx, s.end = work, func(why error) {
		s.mu.Lock()
		if s.ended == nil {
			s.ended = why
		}
		s.mu.Unlock()
		p.kill()
	}
	s.heard.Store(time.Now().UnixNano())
	var serving sync.WaitGroup
	for _, l := range p.lanes {
		serving.Add(1)
		go func() {
			defer serving.Done()
			s.serve(l)
		}()
	}
	s.watch(ctx, p, silence, total)
	cancel()
	serving.Wait()
	if s.control != nil {
		s.control.Close() // what is pending is cancelled
	}
	return s.conclude(ctx, p, memory)
}

// layoutPeriod is how long a worker may map guest memory as it was laid out before.
const layoutPeriod = 20 * time.Millisecond

// watch waits until the worker has ended, and ends it where it must.
func (s *session) watch(ctx context.Context, p *process, silence, total time.Duration) {
	tick := time.NewTicker(min(silence, total)/8 + 1)
	defer tick.Stop()
	// A worker that maps guest memory does not see its layout change: a batch does, and
	// has the pages taken away that are guest memory no more.
	refresh := time.NewTicker(layoutPeriod)
	defer refresh.Stop()
	if !p.shared {
		refresh.Stop()
	}
	begin := time.Now()
	interrupted := ctx.Done()
	for {
		select {
		case <-p.exited:
			return
		case <-interrupted:
			interrupted = nil
			s.end(ctx.Err())
		case <-refresh.C:
			_ = source.ReadBatch(s.src, nil)
		case <-tick.C:
			quiet := time.Since(time.Unix(0, s.heard.Load()))
			switch {
			case s.busy.Load() == 0 && quiet > silence:
				s.end(fmt.Errorf("%w: it asked for nothing in %v", ErrStuck, silence))
			case time.Since(begin) > total:
				s.end(fmt.Errorf("%w: its guest took longer than %v", ErrStuck, total))
			}
		}
	}
}

// conclude makes the result of what came. Nobody else uses the session any more.
func (s *session) conclude(ctx context.Context, p *process, memory uint64) error {
	if s.done && s.ended == nil {
		s.result.adopt(s.out)
		if s.result.Ended == "" {
			return nil
		}
		if s.fatal != nil { // what ended it came through here
			return s.fatal
		}
		return &remoteError{text: s.result.Ended}
	}
	why := s.ended
	if why == nil {
		why = p.death(memory)
	}
	s.out.Status = report.StatusIncomplete
	if s.progress == 0 && len(s.out.Findings) == 0 {
		s.out.Status, s.out.Reason = report.StatusFailed, why.Error()
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if s.out.Status == report.StatusIncomplete {
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

// session is one guest's sweep, seen from the broker.
type session struct {
	target   sweep.Target
	src      source.Source
	profiles winstruct.Finder
	engine   sweep.Scanner
	cache    sweep.Session
	opt      sweep.Options
	ctx      context.Context // ends with the worker
	end      func(why error) // ends the worker; the first reason counts
	note     func(landlockABI int)

	heard  atomic.Int64 // when a lane was last in use, in ns
	busy   atomic.Int32 // questions that are being answered
	budget atomic.Int64 // bytes of content that may still be kept

	mu        *sync.Mutex // the judge's
	out       *report.DomainScan
	judge     *sweep.Judge
	infected  map[[32]byte]string // what the engine said of contents of this guest
	user      string              // that the worker runs as; "" for the broker's own
	abi       int                 // of Landlock, once greeted
	greeted   bool
	control   source.Control // of page-ins
	pageIns   int
	waiting   sync.Mutex        // held by who waits for an event
	near      []winstruct.Entry // as the worker was told
	reported  int               // bytes
	overflown bool              // more findings than are kept
	progress  int
	charged   [lastKind + 1]int // questions, by kind
	result    result
	done      bool
	ended     error // why the worker was ended
	fatal     error // what no sweep goes on after: the guest or the engine is gone
}

// act carries out the verdicts. This reads the guest here, in the broker: its kernel's
// lists and ntdll's exports, but no file of a process.
func (s *session) act(ctx context.Context) error {
	var g *introspect.Guest
	if s.judge.Reads() {
		var err error
		if g, err = introspect.Open(ctx, s.target.Source, s.profiles); err != nil {
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
