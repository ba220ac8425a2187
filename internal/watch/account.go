package watch

import (
	"context"
	"sync"
	"time"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/respond"
	"vmav.dev/vmav/internal/scan"
	"vmav.dev/vmav/internal/verdict"
)

// reportedKey is one finding in one process; pids are used again.
type reportedKey struct {
	pid, created    uint64
	base            finding.Address
	signature, kind string
}

// maxReported bounds what is remembered of findings in one guest.
const maxReported = 1 << 16

// account is the account of one scan, which is spared what it has heard before.
type account struct {
	respond.Account
	s *guestWatch
	p *tracked // that the sweep is of; nil for everything

	mu    sync.Mutex
	fresh map[reportedKey]bool
}

func (s *guestWatch) account(p *tracked) *account {
	return &account{Account: s.f.s.opt.Accounts.Account(s.f.name, s.f.uuid, p == nil), s: s, p: p, fresh: make(map[reportedKey]bool)}
}

func (a *account) key(f *finding.Finding) reportedKey {
	k := reportedKey{pid: f.PID, base: f.Base, signature: f.Signature, kind: f.Kind}
	if a.p != nil {
		k.created = a.p.id.CreateTime
		return k
	}
	a.s.mu.Lock()
	defer a.s.mu.Unlock()
	for id, p := range a.s.procs {
		if id.PID == f.PID && !p.ended {
			k.created = id.CreateTime
		}
	}
	return k
}

// Found implements respond.Recorder.
func (a *account) Found(ctx context.Context, f *finding.Finding, c scan.Content) error {
	k, s := a.key(f), a.s
	s.mu.Lock()
	known := s.reported[k]
	s.mu.Unlock()
	if known && f.Verdict.Action == verdict.Report {
		return nil
	}
	err := a.Account.Found(ctx, f, c)
	a.mu.Lock()
	a.fresh[k] = true
	a.mu.Unlock()
	if err != nil {
		return err // it is recorded the next time that it is found
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.reported) > maxReported {
		clear(s.reported) // told twice rather than never
	}
	s.reported[k] = true
	return nil
}

// close ends the account with the sweep's result.
func (a *account) close(ctx context.Context, trigger string, d *finding.Scan) {
	s := a.s
	var fresh []finding.Finding
	acted := false
	for i := range d.Findings {
		f := &d.Findings[i]
		if a.fresh[a.key(f)] {
			fresh = append(fresh, *f)
			acted = acted || f.Action != verdict.Report && f.Done()
		}
	}
	if a.p == nil || len(fresh) > 0 {
		// What was found is recorded also when the service is being stopped.
		rctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
		defer cancel()
		a.End(rctx, d, fresh)
	}
	killed := 0
	for _, k := range d.Kills {
		if k.Code == finding.OutcomeKilled {
			killed++
		}
		s.f.log.Warn("kill", "pid", k.Target.PID, "process", k.Target.Name, "outcome", k.Code, "reason", k.Reason, "method", k.Method,
			"requested", k.Requested, "applied", k.Applied, "dead", k.Dead)
	}
	for _, f := range fresh {
		args := []any{"pid", f.PID, "process", f.Process, "image", f.Image, "signature", f.Signature, "sha256", f.SHA256,
			"fidelity", f.Fidelity.String(), "action", f.Action, "outcome", f.Text(), "rule", f.Verdict.Rule, "trigger", trigger}
		if a.p != nil && !a.p.old {
			args = append(args, "since_seen_ms", time.Since(a.p.first).Milliseconds())
		}
		s.f.log.Warn("finding", args...)
	}
	s.f.s.count(func(c *Counts) { c.Findings += len(fresh); c.Kills += killed })
	s.f.set(func(st *DomainStatus) { st.Findings += len(fresh); st.Kills += killed })
	if acted && a.p != nil {
		s.mu.Lock()
		a.p.acted, a.p.due = true, time.Time{}
		s.mu.Unlock()
	}
}
