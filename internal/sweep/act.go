package sweep

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/kill"
	"vmav.dev/vmav/internal/verdict"
)

// doomed is a process that is to be killed or held, and the findings that say so.
type doomed struct {
	process  *introspect.Process
	action   verdict.Action // verdict.Kill where any of them says so
	findings []int
}

// doom notes what the verdict on the finding of an index asks for. The caller holds the
// lock.
func (s *sweep) doom(p *introspect.Process, action verdict.Action, finding int) {
	switch action {
	case verdict.Kill, verdict.Hold:
	case verdict.Suspend:
		s.suspends = append(s.suspends, finding)
		return
	default:
		return
	}
	if s.doomed == nil {
		s.doomed = make(map[uint64]*doomed)
	}
	d := s.doomed[p.EPROCESS]
	if d == nil {
		d = &doomed{process: p, action: action}
		s.doomed[p.EPROCESS] = d
	}
	if action == verdict.Kill {
		d.action = action
	}
	d.findings = append(d.findings, finding)
}

// act carries out the verdicts, once for each process, when all has been scanned: what
// ends in mid-scan would leave the scan incomplete. The domain is suspended last, as
// nobody can be killed in one that stands still. What is not known to have worked is an
// error of the sweep, but of a memory image, where nothing can.
func (s *sweep) act(ctx context.Context) {
	var all []*doomed
	for _, d := range s.doomed {
		all = append(all, d)
	}
	slices.SortFunc(all, func(a, b *doomed) int { return cmp.Compare(a.process.PID, b.process.PID) })
	if len(all) > 0 {
		if s.opt.Kills != nil {
			s.opt.Kills.Lock()
			defer s.opt.Kills.Unlock()
		}
		engine, err := kill.New(s.target.Name, s.guest, s.target.Source)
		if s.target.State == StateImage {
			err = errImage
		}
		for _, d := range all {
			k, a := s.end(ctx, engine, err, d)
			s.outcome(ctx, d.findings, d.action, k, a, fmt.Sprintf("%s process %d (%s)", d.action, d.process.PID, d.process.Name))
		}
	}
	if len(s.suspends) > 0 {
		a := s.suspend(ctx)
		s.outcome(ctx, s.suspends, verdict.Suspend, nil, a, "suspend the domain")
	}
}

var (
	errImage = errors.New("nothing runs in a memory image")
	errKeep  = errors.New("a hold lasts no longer than the program that holds: vmav watch holds, and vmav scan --hold-for")
)

// end kills or holds a process and returns the record of the one or the other. The error
// is why the engine could not be had.
func (s *sweep) end(ctx context.Context, engine *kill.Engine, err error, d *doomed) (*finding.Kill, *finding.Act) {
	opt := s.opt.Kill
	opt.Policy, opt.DryRun = s.opt.Policy, s.opt.Policy.DryRun
	if opt.Paused == nil {
		opt.Paused = s.target.Paused
	}
	if d.action == verdict.Kill {
		if err != nil {
			return kill.Refuse(s.target.Name, d.process, err), nil
		}
		s.acting(ctx, d.findings, d.action)
		return engine.Kill(ctx, d.process, opt), nil
	}
	if err == nil && s.opt.Keep == nil && !opt.DryRun {
		err = errKeep
	}
	if err != nil {
		k := kill.Refuse(s.target.Name, d.process, err)
		return nil, &finding.Act{Domain: k.Domain, Action: verdict.Hold, Target: &k.Target, Outcome: k.Outcome, Requested: k.Requested}
	}
	s.acting(ctx, d.findings, d.action)
	a, held := engine.Hold(ctx, d.process, opt)
	if held != nil {
		s.opt.Keep(held)
	}
	return nil, a
}

// suspendTime is how long libvirt may take to pause a domain.
const suspendTime = 30 * time.Second

// suspend pauses the domain.
func (s *sweep) suspend(ctx context.Context) *finding.Act {
	begin := time.Now()
	a := &finding.Act{Domain: s.target.Name, Action: verdict.Suspend, DryRun: s.opt.Policy.DryRun, Requested: begin.UTC()}
	paused := func() bool { return s.target.Paused != nil && s.target.Paused() }
	switch {
	case s.target.State == StateImage:
		a.Code, a.Reason = finding.OutcomeRefused, errImage.Error()
	case s.target.Suspend == nil:
		a.Code, a.Reason = finding.OutcomeRefused, "there is no libvirt to ask"
	case paused():
		a.Code, a.Reason = finding.OutcomeSuspended, "it was paused already"
	case a.DryRun:
		a.Code = finding.OutcomePlanned
	default:
		ctx, cancel := context.WithTimeout(ctx, suspendTime)
		defer cancel()
		s.acting(ctx, s.suspends, verdict.Suspend)
		err := s.target.Suspend(ctx)
		switch {
		case err != nil:
			a.Code, a.Reason = finding.OutcomeFailed, err.Error()
		case !paused():
			a.Code, a.Reason = finding.OutcomeFailed, "libvirt has done it, but does not say that the domain is paused"
		default:
			took := finding.Milliseconds(time.Since(begin))
			a.Code, a.Applied = finding.OutcomeSuspended, &took
		}
	}
	return a
}

// acting tells the sink that the guest is about to be touched.
func (s *sweep) acting(ctx context.Context, findings []int, a verdict.Action) {
	if s.opt.Policy.DryRun {
		return
	}
	all := s.findings(findings)
	s.unrecorded(&all[0], s.opt.Sink.Acting(ctx, a, all))
}

// outcome notes what came of an action for the findings that asked for it: of a kill, or of
// another.
func (s *sweep) outcome(ctx context.Context, findings []int, action verdict.Action, k *finding.Kill, a *finding.Act, what string) {
	var o finding.Outcome
	if k != nil {
		s.out.Kills = append(s.out.Kills, k)
		o = k.Outcome
	} else {
		s.out.Actions = append(s.out.Actions, a)
		o = a.Outcome
	}
	for _, i := range findings {
		s.out.Findings[i].Action, s.out.Findings[i].Outcome = action, o
	}
	if !o.Code.Done() && s.target.State != StateImage {
		s.fail(what, errors.New(o.Text()))
	}
	// What has happened is recorded also where the sweep was interrupted meanwhile.
	all := s.findings(findings)
	s.unrecorded(&all[0], s.opt.Sink.Acted(context.WithoutCancel(ctx), action, all, k, a))
}

// findings are those of some indices.
func (s *sweep) findings(indices []int) []finding.Finding {
	out := make([]finding.Finding, len(indices))
	for i, at := range indices {
		out[i] = s.out.Findings[at]
	}
	return out
}
