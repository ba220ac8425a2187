package watch

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/respond"
	"vmav.dev/vmav/internal/verdict"
)

// endTime bounds how long the service, when it is stopped, waits for the end of a scan to
// be recorded.
const endTime = 30 * time.Second

// conclude ends the account of a scan of one process, or of a sweep if p is nil. It counts
// and logs the result.
func (w *guestWatch) conclude(ctx context.Context, acc respond.Account, p *tracked, trigger string, d *finding.Scan) {
	fresh := respond.Fresh(d.Findings)
	if p == nil || len(fresh) > 0 {
		// Record what was found even if the service is being stopped.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endTime)
		defer cancel()
		acc.End(ctx, d)
	}
	killed, acted := 0, false
	for _, k := range d.Kills {
		if k.Code == finding.OutcomeKilled {
			killed++
		}
		w.f.log.Warn("kill", "pid", k.Target.PID, "process", k.Target.Name, "outcome", k.Code, "reason", k.Reason, "method", k.Method,
			"requested", k.Requested, "applied", k.Applied, "dead", k.Dead)
	}
	for i := range fresh {
		f := &fresh[i]
		acted = acted || f.Action != verdict.Report && f.Done()
		args := []any{"pid", f.PID, "process", f.Process, "image", f.Image, "signature", f.Signature, "sha256", f.SHA256,
			"fidelity", f.Fidelity.String(), "action", f.Action, "outcome", f.Text(), "rule", f.Verdict.Rule, "trigger", trigger}
		if p != nil && !p.old {
			args = append(args, "since_seen_ms", time.Since(p.first).Milliseconds())
		}
		w.f.log.Warn("finding", args...)
	}
	w.f.svc.count(func(c *Counts) { c.Findings += len(fresh); c.Kills += killed })
	w.f.set(func(st *DomainStatus) { st.Findings += len(fresh); st.Kills += killed })
	if acted && p != nil {
		w.mu.Lock()
		p.acted, p.due = true, time.Time{}
		w.mu.Unlock()
	}
}

// warner writes warnings to the log.
type warner struct{ log *slog.Logger }

// Warn implements respond.Warner.
func (w warner) Warn(format string, args ...any) { w.log.Warn(fmt.Sprintf(format, args...)) }
