package respond

import (
	"context"
	"path/filepath"
	"strings"
	"sync"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/history"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/kill"
	"vmav.dev/vmav/internal/lock"
	"vmav.dev/vmav/internal/scan"
	"vmav.dev/vmav/internal/verdict"
)

// Kill ends one process on request, without a finding. It records the kill before and
// after. It warns of what cannot be recorded and kills all the same.
func (r *Records) Kill(ctx context.Context, t scan.Target, g *introspect.Guest, p *introspect.Process, o Options) *finding.Kill {
	acted := r.killing(ctx, &t, p, o.Kill.DryRun)
	k := killNow(ctx, &t, g, p, &o)
	acted(k)
	return k
}

// killNow ends a process and returns the record of that.
func killNow(ctx context.Context, t *scan.Target, g *introspect.Guest, p *introspect.Process, o *Options) *finding.Kill {
	engine, err := kill.New(t.Name, g, t.Source)
	if err != nil {
		return kill.Refuse(t.Name, p, err)
	}
	if o.Kills != nil {
		o.Kills.Lock()
		defer o.Kills.Unlock()
	}
	opt := o.Kill
	opt.Domain = t.Domain
	return engine.Kill(ctx, p, opt)
}

// killing records that a process is about to be killed. It returns a function that records
// the outcome.
func (r *Records) killing(ctx context.Context, t *scan.Target, p *introspect.Process, dryRun bool) func(*finding.Kill) {
	none := func(*finding.Kill) {}
	a := r.Account(t.Name, t.UUID, true).(*account)
	a.run.Operation = history.OperationKill
	rec := a.begin(ctx)
	if rec == nil {
		return none
	}
	warned := func(err error) bool {
		if err != nil {
			r.opt.Warner.Warn("%v", err)
		}
		return err != nil
	}
	id, err := rec.Kill(ctx, kill.ProcessOf(p), dryRun)
	if warned(err) {
		return none
	}
	if !dryRun {
		warned(rec.Acting(ctx, verdict.Kill, id))
	}
	return func(k *finding.Kill) {
		ctx := context.WithoutCancel(ctx)
		warned(rec.Acted(ctx, verdict.Kill, k.Outcome, k, nil, id))
		warned(rec.End(ctx, &finding.Scan{Name: k.Domain, Status: string(k.Code)}))
	}
}

// KillLock returns the lock that everybody takes who kills in a domain, so that nobody
// tries to end a process whose end is under way. The lock is a file in the given directory.
// KillLock returns nil for a memory image, which has no UUID: nothing can be killed in it.
func KillLock(ctx context.Context, directory, uuid string) sync.Locker {
	if uuid == "" {
		return nil
	}
	return lock.NewLocker(ctx, killLockPath(directory, uuid))
}

func killLockPath(directory, uuid string) string {
	return filepath.Join(directory, "kill-"+strings.ReplaceAll(uuid, "/", "_")+".lock")
}
