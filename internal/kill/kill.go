package kill

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/subject"
	"vmav.dev/vmav/internal/verdict"
)

// Host is what a kill needs of a guest's host: to read and write the guest's present
// memory, and to act on the guest.
type Host interface {
	source.Source
	source.Writer
	source.Controller
}

// ErrNoModule reports a guest that can only be read.
var ErrNoModule = errors.New("killing takes the kvm-memhook module, and the guest is not read through it")

// Engine kills processes of one guest. It is safe for concurrent use. It owns neither the
// guest nor its host.
type Engine struct {
	guest  *introspect.Guest
	host   Host
	domain string

	mu       sync.Mutex
	lib      *library                                // nil until it is found
	mappings map[introspect.Identity]*introspect.VAD // where processes map the library
}

// New makes an engine for a guest. src is the guest's source. The engine does not use a
// cache in front of it, because it must read present memory. New fails with ErrNoModule if
// src can only read, and with introspect.ErrActions32 for a 32-bit guest.
func New(domain string, g *introspect.Guest, src source.Source) (*Engine, error) {
	if k := g.Kernel(); k.Bits != 64 {
		return nil, fmt.Errorf("domain %s: Windows %s is %d-bit: %w", domain, k.Version, k.Bits, introspect.ErrActions32)
	}
	src = source.Uncached(src)
	host, ok := src.(Host)
	if !ok {
		return nil, fmt.Errorf("domain %s: %w", domain, ErrNoModule)
	}
	return &Engine{guest: g.WithSource(src), host: host, domain: domain, mappings: make(map[introspect.Identity]*introspect.VAD)}, nil
}

// Status is the exit status of a killed process: STATUS_VIRUS_INFECTED.
const Status finding.NTStatus = 0xc0000906

// Refuse returns the record of a kill that is not even tried.
func Refuse(domain string, p *introspect.Process, why error) *finding.Kill {
	return &finding.Kill{Domain: domain, Target: ProcessOf(p), Outcome: finding.Outcome{Code: finding.OutcomeRefused, Reason: why.Error()},
		Requested: time.Now().UTC()}
}

// DefaultTimeout is how long a kill is tried.
const DefaultTimeout = 10 * time.Second

// Options say how to kill.
type Options struct {
	Timeout time.Duration  // 0 for DefaultTimeout; at most MaxTimeout
	Policy  verdict.Policy // names the programs that may serve as surrogates, if any
	DryRun  bool           // verify everything that can be verified, and touch nothing
	Domain  Domain         // the domain that the process runs in; nil if it is unknown
}

// Domain is what a kill asks of the domain that its guest runs in.
type Domain interface {
	// Paused reports whether the domain is paused now, so that nothing runs in it.
	Paused() bool
}

// MaxTimeout bounds Options.Timeout. Actions live for ten minutes at most.
const MaxTimeout = 10 * time.Minute

// attempt is one kill, or one hold, that is under way.
type attempt struct {
	*Engine
	opt    Options
	rec    *finding.Kill // of a hold, too
	begin  time.Time
	target introspect.Process
	id     introspect.Identity
	guards *introspect.Guards
	procs  []introspect.Process
}

// newAttempt begins an attempt on a process: it completes the options and the record.
func (e *Engine) newAttempt(p *introspect.Process, opt Options) *attempt {
	if opt.Timeout <= 0 {
		opt.Timeout = DefaultTimeout
	}
	opt.Timeout = min(opt.Timeout, MaxTimeout)
	begin := time.Now()
	return &attempt{Engine: e, opt: opt, begin: begin, target: *p,
		rec: &finding.Kill{Domain: e.domain, Target: ProcessOf(p), DryRun: opt.DryRun, Requested: begin.UTC()}}
}

// Kill ends a process. p is the process as it was when the kill was decided on. The record
// says what was done and what came of it. There is no error besides it, because a guest that
// cannot be read is an outcome too. If ctx ends, Kill first undoes what is under way.
func (e *Engine) Kill(ctx context.Context, p *introspect.Process, opt Options) *finding.Kill {
	k := e.newAttempt(p, opt)
	if !k.check(ctx, p) {
		return k.rec
	}
	ctx, cancel := context.WithTimeout(ctx, k.opt.Timeout)
	defer cancel()
	if k.opt.DryRun {
		k.plan(ctx)
		return k.rec
	}
	ctl, err := openControl(e.host)
	if err != nil {
		k.fail(finding.OutcomeFailed, "open control of the guest", err)
		return k.rec
	}
	defer ctl.close()
	k.run(ctx, ctl)
	return k.rec
}

// ProcessOf returns a process in the form in which records name it.
func ProcessOf(p *introspect.Process) finding.Process {
	return finding.Process{PID: p.PID, Name: p.Name, Path: p.Path, EPROCESS: finding.Address(p.EPROCESS), DTB: finding.Address(p.DTB), Created: p.Created}
}

// end sets the outcome. If the kill is pending and the domain is paused, that is the
// reason, whatever else may be said.
func (k *attempt) end(o finding.Code, format string, args ...any) {
	if o == finding.OutcomePending && k.opt.Domain != nil && k.opt.Domain.Paused() {
		format, args = "the domain is paused", nil
	}
	k.rec.Code, k.rec.Reason = o, fmt.Sprintf(format, args...)
}

// fail sets the outcome with an error as the reason. A guest that has gone is an outcome of
// its own.
func (k *attempt) fail(o finding.Code, doing string, err error) {
	switch {
	case errors.Is(err, source.ErrGone):
		k.end(finding.OutcomeGone, "the guest went away: %s", doing)
	case errors.Is(err, context.DeadlineExceeded) && o == finding.OutcomeFailed:
		k.end(finding.OutcomePending, "%s: not done in %v", doing, k.opt.Timeout)
	case doing == "":
		k.end(o, "%v", err)
	default:
		k.end(o, "%s: %v", doing, err)
	}
}

// check compares the process with the one that was meant, and checks every guard of a
// verdict. It lists the guest's processes again. If it returns false, the outcome is set.
func (k *attempt) check(ctx context.Context, p *introspect.Process) bool {
	k.guest.Refresh()
	procs, _, err := k.guest.Processes(ctx)
	if err != nil {
		k.fail(finding.OutcomeFailed, "read the guest's processes", err)
		return false
	}
	k.procs = procs
	at := slices.IndexFunc(procs, func(q introspect.Process) bool { return q.EPROCESS == p.EPROCESS })
	if at < 0 || procs[at].PID != p.PID || !procs[at].Created.Equal(p.Created) {
		k.end(finding.OutcomeRefused, "process %d (%s) has gone, and its object with it", p.PID, p.Name)
		for i := range procs {
			if q := &procs[i]; q.PID == p.PID && q.Exited.IsZero() {
				k.end(finding.OutcomeRefused, "pid %d was reused: it is %s now, made at %s", p.PID, q.Name, q.Created.Format(time.RFC3339))
			}
		}
		return false
	}
	k.target = procs[at]
	k.rec.Target = ProcessOf(&k.target)
	id, st, err := k.guest.Identify(p.EPROCESS)
	if err != nil {
		k.fail(finding.OutcomeFailed, "identify the process", err)
		return false
	}
	if id.PID != p.PID {
		k.end(finding.OutcomeRefused, "the process object is that of pid %d now", id.PID)
		return false
	}
	k.id = id
	if st.ExitTime != 0 {
		k.ended(st)
		return false
	}
	subject := subject.Of(&k.target)
	subject.Critical = subject.Critical || st.Critical
	if why := verdict.Guard(subject); why != "" {
		k.end(finding.OutcomeRefused, "%s", why)
		return false
	}
	if k.target.PEB == 0 || k.id.DTB == 0 {
		k.end(finding.OutcomeRefused, "it has no user mode")
		return false
	}
	if k.opt.Domain != nil && k.opt.Domain.Paused() {
		k.end(finding.OutcomeRefused, "the domain is paused: nothing runs in it")
		return false
	}
	if k.guards, err = k.guest.Guards(id); err != nil {
		k.fail(finding.OutcomeFailed, "prepare the guards", err)
		return false
	}
	return true
}

// ended sets the outcome of a process that has ended. Its exit status says whether vmav
// ended it.
func (k *attempt) ended(st introspect.State) {
	status := finding.NTStatus(st.ExitStatus)
	k.rec.ExitStatus = &status
	if p, _ := k.guest.ProcessAt(k.id.EPROCESS); !p.Exited.IsZero() {
		k.rec.Exited = &p.Exited
	}
	if k.rec.Applied != nil && status == Status {
		k.rec.Outcome = finding.Outcome{Code: finding.OutcomeKilled}
		return
	}
	k.end(finding.OutcomeExited, "it ended by itself, with status %v", status)
}

// since returns the time since the request.
func (k *attempt) since() *finding.Milliseconds {
	m := finding.Milliseconds(time.Since(k.begin))
	return &m
}

// library returns the guest's ntdll. It is found once.
func (k *attempt) library(ctx context.Context) (*library, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.lib == nil {
		lib, err := findLibrary(ctx, k.guest, k.procs)
		if err != nil {
			return nil, fmt.Errorf("find the guest's %s: %w", ntdllName, err)
		}
		if !lib.complete() {
			return lib, nil // some of it is not in memory now, so look again next time
		}
		k.lib = lib
	}
	return k.lib, nil
}

// run tries one way to end the process after the other.
func (k *attempt) run(ctx context.Context, ctl *control) {
	lib, err := k.library(ctx)
	if err != nil {
		k.fail(finding.OutcomeFailed, "", err)
		return
	}
	why := k.direct(ctx, ctl, lib)
	if k.rec.Code != "" {
		return
	}
	if !k.surrogate(ctx, ctl, lib, why) && k.rec.Code == "" {
		k.end(finding.OutcomePending, "%v", why)
	}
}

// awaitEnd reads the process until it has ended or ctx ends. It returns true if it has set
// the outcome, also for an error.
func (k *attempt) awaitEnd(ctx context.Context) bool {
	for wait := time.Millisecond; ; wait = min(wait*5/4, 20*time.Millisecond) {
		st, err := k.guest.Recheck(k.id)
		switch {
		case errors.Is(err, introspect.ErrOtherProcess):
			// Its object was freed before anyone could read how it ended.
			k.rec.Dead = k.since()
			k.end(finding.OutcomeFailed, "it is gone, but its exit status was not seen: %v", err)
			return true
		case err != nil:
			k.fail(finding.OutcomeFailed, "read the process's end", err)
			return true
		case st.ExitTime != 0:
			k.rec.Dead = k.since()
			k.ended(st)
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(wait):
		}
	}
}
