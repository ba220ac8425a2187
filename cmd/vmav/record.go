package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/urfave/cli/v2"

	"vmav.dev/vmav/internal/evidence"
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/history"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/kill"
	"vmav.dev/vmav/internal/sweep"
	"vmav.dev/vmav/internal/verdict"
)

// recordFlags are those of the commands that record what they do.
func recordFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "no-history", Usage: "record nothing in the history"},
		&cli.StringFlag{Name: "trigger", Value: history.TriggerCLI, Hidden: true, Usage: "`WHAT` started this, for the record: cli, hook, watch or timer"},
	}
}

// recording is where a command records what it does. A nil recording records nothing.
type recording struct {
	e      *env
	db     *history.DB
	origin history.Origin
	always bool // evidence of every finding was asked for

	dir    string
	limits evidence.Limits
	prune  history.Limits
	once   sync.Once
	store  *evidence.Store
	err    error // of opening the store
}

// asksForEvidence tells whether a policy may have evidence kept.
func asksForEvidence(p verdict.Policy) bool {
	return slices.ContainsFunc(p.Rules, func(r verdict.Rule) bool { return r.Evidence })
}

// openRecording opens the history, unless it was not asked for. Where it cannot be opened
// that is said once, and is an error only where evidence was asked for, by option or
// policy, which a record must point to. The caller calls close.
func openRecording(c *cli.Context, e *env, byPolicy bool) (*recording, error) {
	always := c.Bool("evidence")
	wanted := always || byPolicy
	if c.Bool("no-history") {
		if always {
			return nil, errors.New("--evidence is kept for findings in the history: it does not go with --no-history")
		}
		return nil, nil
	}
	trigger := c.String("trigger")
	if !slices.Contains([]string{history.TriggerCLI, history.TriggerHook, history.TriggerWatch, history.TriggerTimer}, trigger) {
		return nil, fmt.Errorf("trigger %q: known are cli, hook, watch and timer", trigger)
	}
	dir, err := e.stateDirectory(c)
	var r *recording
	if err == nil {
		r, err = newRecording(c, e, dir, history.Self(trigger, os.Args), always, wanted)
	}
	if err != nil && !wanted {
		e.warn("%v; nothing is recorded", err)
		return nil, nil
	}
	return r, err
}

// newRecording opens the history in a state directory, and where evidence is wanted that,
// of every finding or of those whose verdict says so.
func newRecording(c *cli.Context, e *env, dir string, o history.Origin, always, wanted bool) (*recording, error) {
	prune, limits, err := e.limits(c)
	if err != nil {
		return nil, err
	}
	db, err := history.Open(dir)
	if err != nil {
		return nil, err
	}
	r := &recording{e: e, db: db, origin: o, always: always, dir: evidenceDirectory(dir), limits: limits, prune: prune}
	if wanted {
		if _, err := r.evidence(); err != nil {
			db.Close()
			return nil, err
		}
	}
	return r, nil
}

// evidence opens the store when it is first needed.
func (r *recording) evidence() (*evidence.Store, error) {
	r.once.Do(func() { r.store, r.err = evidence.Open(r.dir, r.limits) })
	return r.store, r.err
}

// close keeps the limits and closes the history.
func (r *recording) close() {
	if r == nil {
		return
	}
	_, err := r.db.Prune(context.Background(), r.origin, r.prune)
	if r.store != nil && err == nil {
		_, err = r.store.Prune()
	}
	if cerr := r.db.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		r.e.warn("%v", err)
	}
}

// runRecord is the record of one run on one domain. A nil one records nothing.
type runRecord struct {
	*history.Recorder
	r *recording
}

// begin begins the record of a run. Where that cannot be written, the run goes on without.
func (r *recording) begin(ctx context.Context, op, domain, uuid string, engine *finding.Engine) *runRecord {
	if r == nil {
		return nil
	}
	rec, err := r.db.Begin(ctx, history.Run{Origin: r.origin, Operation: op, Domain: domain, UUID: uuid, Engine: engine})
	if err != nil {
		r.e.warn("%v; it is not recorded", err)
		return nil
	}
	return &runRecord{rec, r}
}

// sink is the run as a sweep takes it.
func (n *runRecord) sink() sweep.Sink {
	if n == nil {
		return nil
	}
	return n
}

// end records the result. An interruption does not keep it from being recorded.
func (n *runRecord) end(ctx context.Context, d *finding.Scan) {
	if n == nil {
		return
	}
	if err := n.End(context.WithoutCancel(ctx), d); err != nil {
		n.r.e.warn("%v", err)
		if d.Status == finding.StatusScanned {
			d.Status = finding.StatusIncomplete
		}
		d.Errors = append(d.Errors, finding.Unread{What: "history", Error: err.Error()})
	}
}

// Found implements sweep.Sink: the evidence first, so that a record never points to what
// is not there.
func (n *runRecord) Found(ctx context.Context, f *finding.Finding, x sweep.Exhibit) error {
	var errs []error
	if n.r.always || f.Verdict.Evidence {
		errs = append(errs, n.keep(f, x))
	}
	return errors.Join(append(errs, n.Recorder.Found(ctx, f))...)
}

// Acting implements sweep.Sink.
func (n *runRecord) Acting(ctx context.Context, action verdict.Action, findings []finding.Finding) error {
	return n.Recorder.Acting(ctx, action, ids(findings)...)
}

// Acted implements sweep.Sink.
func (n *runRecord) Acted(ctx context.Context, action verdict.Action, findings []finding.Finding, k *finding.Kill, a *finding.Act) error {
	var outcome finding.Outcome
	if len(findings) > 0 {
		outcome = findings[0].Outcome
	}
	return n.Recorder.Acted(ctx, action, outcome, k, a, ids(findings)...)
}

// ids are the numbers of the findings that have a record.
func ids(findings []finding.Finding) []int64 {
	var out []int64
	for _, f := range findings {
		if f.ID != 0 {
			out = append(out, f.ID)
		}
	}
	return out
}

// keep stores the evidence of a finding and notes in it what was stored.
func (n *runRecord) keep(f *finding.Finding, x sweep.Exhibit) error {
	store, err := n.r.evidence()
	if err != nil {
		f.Evidence = []finding.Exhibit{{Kind: finding.ExhibitScanned, Error: err.Error()}}
		return err
	}
	var errs []error
	put := func(kind string, content []byte) {
		h := evidence.Header{Kind: kind, Domain: f.Domain, Image: f.Image, Signature: f.Signature}
		sum, err := store.Put(h, content)
		if err != nil {
			f.Evidence = append(f.Evidence, finding.Exhibit{Kind: kind, Error: err.Error()})
			errs = append(errs, err)
			return
		}
		f.Evidence = append(f.Evidence, finding.Exhibit{Kind: kind, SHA256: sum, Size: uint64(len(content))})
	}
	put(finding.ExhibitScanned, x.Scanned)
	if x.Memory != nil {
		put(finding.ExhibitMemory, x.Memory)
	}
	if x.Fidelity != nil {
		doc, err := json.MarshalIndent(x.Fidelity, "", "  ")
		if err != nil {
			return err
		}
		put(finding.ExhibitFidelity, doc)
	}
	return errors.Join(errs...)
}

// kill records that a process is about to be killed by hand, and returns what records
// the outcome. What cannot be recorded is said, and keeps nobody from killing.
func (n *runRecord) kill(ctx context.Context, p *introspect.Process, dryRun bool) func(*finding.Kill) {
	if n == nil {
		return func(*finding.Kill) {}
	}
	said := func(err error) bool {
		if err != nil {
			n.r.e.warn("%v", err)
		}
		return err != nil
	}
	id, err := n.Kill(ctx, kill.ProcessOf(p), dryRun)
	if said(err) {
		return func(*finding.Kill) {}
	}
	if !dryRun {
		said(n.Recorder.Acting(ctx, verdict.Kill, id))
	}
	return func(k *finding.Kill) {
		ctx := context.WithoutCancel(ctx)
		said(n.Recorder.Acted(ctx, verdict.Kill, k.Outcome, k, nil, id))
		said(n.End(ctx, &finding.Scan{Name: k.Domain, Status: string(k.Code)}))
	}
}
