package respond

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
	"vmav.dev/vmav/internal/scan"
	"vmav.dev/vmav/internal/verdict"
)

// doomed is a process to kill or to hold, and the findings that ask for it.
type doomed struct {
	process  *introspect.Process
	action   verdict.Action // verdict.Kill if any of them asks for it
	findings []int          // indices into response.findings
}

// doom notes what the verdict on a finding asks for. finding is an index into r.findings.
// The caller holds the lock.
func (r *response) doom(p *introspect.Process, action verdict.Action, finding int) {
	switch action {
	case verdict.Kill, verdict.Hold:
	case verdict.Suspend:
		r.suspends = append(r.suspends, finding)
		return
	default:
		return
	}
	if r.doomed == nil {
		r.doomed = make(map[uint64]*doomed)
	}
	d := r.doomed[p.EPROCESS]
	if d == nil {
		d = &doomed{process: p, action: action}
		r.doomed[p.EPROCESS] = d
	}
	if action == verdict.Kill {
		d.action = action
	}
	d.findings = append(d.findings, finding)
}

// act carries out the verdicts, once for each process, after everything has been scanned. A
// process that ended during the scan would leave the scan incomplete. The domain is
// suspended last, because nothing can be killed in a paused domain. An action that is not
// known to have worked is an error of the result, except in a memory image, where no action
// is possible. act returns an error only if it was interrupted.
func (r *response) act(ctx context.Context) error {
	var all []*doomed
	for _, d := range r.doomed {
		all = append(all, d)
	}
	slices.SortFunc(all, func(a, b *doomed) int { return cmp.Compare(a.process.PID, b.process.PID) })
	if len(all) > 0 {
		if err := r.actOn(ctx, all); err != nil {
			return err
		}
	}
	if len(r.suspends) > 0 {
		a := r.suspend(ctx)
		r.outcome(ctx, r.suspends, verdict.Suspend, nil, a)
	}
	return ctx.Err()
}

// actOn kills or holds processes. It reads the guest again: the kernel's lists and the
// exports of ntdll, but no file of a process.
func (r *response) actOn(ctx context.Context, all []*doomed) error {
	var engine *kill.Engine
	why := errImage
	if r.target.State != scan.StateImage {
		g, err := introspect.OpenAt(ctx, r.target.Source, r.opt.Profiles, r.req.At)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			r.fail("carry out verdicts", err)
			return nil
		}
		engine, why = kill.New(r.target.Name, g, r.target.Source)
	}
	if r.opt.Kills != nil {
		r.opt.Kills.Lock()
		defer r.opt.Kills.Unlock()
	}
	for _, d := range all {
		k, a := r.end(ctx, engine, why, d)
		r.outcome(ctx, d.findings, d.action, k, a)
	}
	return nil
}

// end kills or holds a process and returns the record of the one or of the other. If engine
// is nil, err says why there is none.
func (r *response) end(ctx context.Context, engine *kill.Engine, err error, d *doomed) (*finding.Kill, *finding.Act) {
	opt := r.opt.Kill
	opt.Policy, opt.DryRun = r.opt.Policy, r.opt.Policy.DryRun
	if opt.Domain == nil {
		opt.Domain = r.target.Domain
	}
	if d.action == verdict.Kill {
		if err != nil {
			return kill.Refuse(r.target.Name, d.process, err), nil
		}
		r.acting(ctx, d.findings, d.action)
		return engine.Kill(ctx, d.process, opt), nil
	}
	if err == nil && r.opt.Holder == nil && !opt.DryRun {
		err = errKeep
	}
	if err != nil {
		k := kill.Refuse(r.target.Name, d.process, err)
		return nil, &finding.Act{Domain: k.Domain, Action: verdict.Hold, Target: &k.Target, Outcome: k.Outcome, Requested: k.Requested}
	}
	r.acting(ctx, d.findings, d.action)
	a, held := engine.Hold(ctx, d.process, opt)
	if held != nil {
		r.opt.Holder.Keep(held)
	}
	return nil, a
}

// suspendTime bounds how long libvirt may take to pause a domain.
const suspendTime = 30 * time.Second

// suspend pauses the domain and returns the record of that.
func (r *response) suspend(ctx context.Context) *finding.Act {
	begin := time.Now()
	a := &finding.Act{Domain: r.target.Name, Action: verdict.Suspend, DryRun: r.opt.Policy.DryRun, Requested: begin.UTC()}
	paused := func() bool { return r.target.Domain != nil && r.target.Domain.Paused() }
	domain, can := r.target.Domain.(Suspender)
	switch {
	case r.target.State == scan.StateImage:
		a.Code, a.Reason = finding.OutcomeRefused, errImage.Error()
	case !can:
		a.Code, a.Reason = finding.OutcomeRefused, "there is no libvirt to ask"
	case paused():
		a.Code, a.Reason = finding.OutcomeSuspended, "it was paused already"
	case a.DryRun:
		a.Code = finding.OutcomePlanned
	default:
		ctx, cancel := context.WithTimeout(ctx, suspendTime)
		defer cancel()
		r.acting(ctx, r.suspends, verdict.Suspend)
		err := domain.Suspend(ctx)
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

// acting records that the guest is about to be touched.
func (r *response) acting(ctx context.Context, findings []int, a verdict.Action) {
	if r.opt.Policy.DryRun || r.opt.Recorder == nil {
		return
	}
	all := r.some(findings)
	r.unrecorded(&all[0], r.opt.Recorder.Acting(ctx, a, all))
}

// outcome notes and records what came of an action, for the findings that asked for it. k
// is the record of a kill. If k is nil, a is the record of another action.
func (r *response) outcome(ctx context.Context, findings []int, action verdict.Action, k *finding.Kill, a *finding.Act) {
	var o finding.Outcome
	what := "suspend the domain"
	switch {
	case k != nil:
		r.kills, o, what = append(r.kills, k), k.Outcome, fmt.Sprintf("%s process %d (%s)", action, k.Target.PID, k.Target.Name)
	case a.Target != nil:
		r.actions, o, what = append(r.actions, a), a.Outcome, fmt.Sprintf("%s process %d (%s)", action, a.Target.PID, a.Target.Name)
	default:
		r.actions, o = append(r.actions, a), a.Outcome
	}
	for _, i := range findings {
		r.findings[i].Action, r.findings[i].Outcome = action, o
	}
	if !o.Code.Done() && r.target.State != scan.StateImage {
		r.fail(what, errors.New(o.Text()))
	}
	if r.opt.Recorder == nil {
		return
	}
	// Record what has happened even if the scan was interrupted in the meantime.
	all := r.some(findings)
	r.unrecorded(&all[0], r.opt.Recorder.Acted(context.WithoutCancel(ctx), action, all, k, a))
}

// some returns the findings with the given indices.
func (r *response) some(indices []int) []finding.Finding {
	out := make([]finding.Finding, len(indices))
	for i, at := range indices {
		out[i] = r.findings[at]
	}
	return out
}
