package main

import (
	"context"
	"sync"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/history"
	"vmav.dev/vmav/internal/notify"
	"vmav.dev/vmav/internal/sweep"
	"vmav.dev/vmav/internal/verdict"
)

// watchRecord records and tells of one sweep of the service. Of what is new in a guest
// there are many, and most find nothing: those leave no record.
type watchRecord struct {
	rec          *recording // nil for none
	tell         *notify.Notifier
	dryRun       bool
	domain, uuid string
	everything   bool

	once sync.Once
	run  *runRecord
}

// begin begins the record when there is something to record.
func (w *watchRecord) begin(ctx context.Context) *runRecord {
	w.once.Do(func() { w.run = w.rec.begin(ctx, history.OperationScan, w.domain, w.uuid, nil) })
	return w.run
}

// Found implements sweep.Sink.
func (w *watchRecord) Found(ctx context.Context, f *finding.Finding, x sweep.Exhibit) error {
	if r := w.begin(ctx); r != nil {
		return r.Found(ctx, f, x)
	}
	return nil
}

// Acting implements sweep.Sink.
func (w *watchRecord) Acting(ctx context.Context, action verdict.Action, findings []finding.Finding) error {
	if r := w.begin(ctx); r != nil {
		return r.Acting(ctx, action, findings)
	}
	return nil
}

// Acted implements sweep.Sink.
func (w *watchRecord) Acted(ctx context.Context, action verdict.Action, findings []finding.Finding, k *finding.Kill, a *finding.Act) error {
	if r := w.begin(ctx); r != nil {
		return r.Acted(ctx, action, findings, k, a)
	}
	return nil
}

// End implements watch.Record.
func (w *watchRecord) End(ctx context.Context, d *finding.Scan, fresh []finding.Finding) {
	if w.everything || w.run != nil {
		w.begin(ctx).end(ctx, d)
	}
	told := *d
	told.Findings = fresh // the others were told of before
	if w.everything {
		w.tell.Domain(&told, w.dryRun)
	} else {
		w.tell.Fresh(&told, w.dryRun)
	}
}
