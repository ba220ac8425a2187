package history

import (
	"context"
	"fmt"
	"sync"
	"time"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/verdict"
)

// maxErrors bounds the errors that are kept of one run. A hostile guest can cause any
// number of errors, and they must not push out older records.
const maxErrors = 200

// Run describes a run that begins.
type Run struct {
	Origin
	Operation    string // OperationScan or OperationKill
	Domain, UUID string
	Engine       *finding.Engine // nil if no engine scans
}

// Recorder records one run on one domain while it runs. It is safe for concurrent use.
type Recorder struct {
	db  *DB
	run Run
	id  int64      // of the run's record
	mu  sync.Mutex // held over each write
}

// Begin records the beginning of a run. If End is never called, the run stays
// unfinished.
func (db *DB) Begin(ctx context.Context, run Run) (*Recorder, error) {
	r := &Recorder{db: db, run: run}
	err := db.write(ctx, func(t *txn) (err error) {
		r.id, err = t.begin(run, time.Now())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("record the beginning of a %s of %s: %w", run.Operation, run.Domain, err)
	}
	return r, nil
}

// write runs do in one transaction, with the number of the run.
func (r *Recorder) write(ctx context.Context, do func(t *txn, run int64) error) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.db.write(ctx, func(t *txn) error { return do(t, r.id) })
}

func (t *txn) begin(run Run, at time.Time) (int64, error) {
	return t.append(kindBegin, 0, at, beginBody{run.Operation, run.Origin, run.Domain, run.UUID, run.Engine})
}

// ID is the number of the run's record.
func (r *Recorder) ID() int64 { return r.id }

// Found records a finding with its verdict and sets the finding's ID. When it returns
// nil, the finding is on disk. On error the ID is 0.
func (r *Recorder) Found(ctx context.Context, f *finding.Finding) error {
	err := r.write(ctx, func(t *txn, run int64) error { return t.found(run, f, time.Now()) })
	if err != nil {
		f.ID = 0
		return fmt.Errorf("record the finding %s in %s: %w", f.Signature, finding.Where(f.PID, f.Process), err)
	}
	return nil
}

func (t *txn) found(run int64, f *finding.Finding, at time.Time) (err error) {
	f.ID = 0 // the record's own number is not in it
	f.ID, err = t.append(kindFinding, run, at, f)
	return err
}

// Kill records that somebody asked for the end of a process without a finding. It
// returns the ID of that record.
func (r *Recorder) Kill(ctx context.Context, p finding.Process, dryRun bool) (id int64, err error) {
	err = r.write(ctx, func(t *txn, run int64) (err error) {
		id, err = t.append(kindKill, run, time.Now(), killBody{p, dryRun})
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("record the kill of process %d: %w", p.PID, err)
	}
	return id, nil
}

// Acting records that an action for the entries with these IDs begins. The action may
// touch the guest from now on.
func (r *Recorder) Acting(ctx context.Context, action verdict.Action, ids ...int64) error {
	return r.action(ctx, actionBody{State: StateRequested, Action: action, Entries: ids})
}

// Acted records the outcome of an action, with the audit record of a kill or of another
// action. Either may be nil.
func (r *Recorder) Acted(ctx context.Context, action verdict.Action, o finding.Outcome, k *finding.Kill, a *finding.Act, ids ...int64) error {
	return r.action(ctx, actionBody{State: StateOutcome, Action: action, Entries: ids, Outcome: &o, Kill: k, Act: a})
}

func (r *Recorder) action(ctx context.Context, b actionBody) error {
	err := r.write(ctx, func(t *txn, run int64) error {
		_, err := t.append(kindAction, run, time.Now(), b)
		return err
	})
	if err != nil {
		return fmt.Errorf("record the state %s of action %s: %w", b.State, b.Action, err)
	}
	return nil
}

// endBody is the content of kindEnd: a result whose findings and actions have records of
// their own.
type endBody struct {
	finding.Scan
	Omitted int `json:"errors_omitted,omitempty"`
}

// End records the end of a run and its result. It also records findings that Found did
// not record, and outcomes that Acted did not record. On error those findings have the
// ID 0.
func (r *Recorder) End(ctx context.Context, d *finding.Scan) error {
	var unrecorded []*finding.Finding
	for i := range d.Findings {
		if d.Findings[i].ID == 0 {
			unrecorded = append(unrecorded, &d.Findings[i])
		}
	}
	err := r.write(ctx, func(t *txn, run int64) error { return t.end(run, d, time.Now()) })
	if err != nil {
		for _, f := range unrecorded {
			f.ID = 0
		}
		return fmt.Errorf("record the end of the scan of %s: %w", d.Name, err)
	}
	return nil
}

func (t *txn) end(run int64, d *finding.Scan, at time.Time) error {
	for i := range d.Findings {
		if err := t.complete(run, &d.Findings[i], d, at); err != nil {
			return err
		}
	}
	b := endBody{Scan: *d}
	b.Findings, b.Kills, b.Actions = nil, nil, nil
	if n := len(b.Errors); n > maxErrors {
		b.Errors, b.Omitted = b.Errors[:maxErrors], n-maxErrors
	}
	_, err := t.append(kindEnd, run, at, b)
	return err
}

// complete records what is still missing of a finding at the end of its run: the finding
// itself, or its outcome.
func (t *txn) complete(run int64, f *finding.Finding, d *finding.Scan, at time.Time) error {
	if f.ID == 0 {
		if err := t.found(run, f, at); err != nil {
			return err
		}
	}
	var action string
	var o finding.Outcome
	recorded := t.QueryRowContext(t.ctx, "SELECT action, outcome, reason FROM entries WHERE id = ? AND scan = ?", f.ID, run)
	if err := recorded.Scan(&action, &o.Code, &o.Reason); err != nil {
		return fmt.Errorf("finding %d of run %d: %w", f.ID, run, err)
	}
	if action == string(f.Action) && o == f.Outcome {
		return nil
	}
	b := actionBody{State: StateOutcome, Action: f.Action, Entries: []int64{f.ID}, Outcome: &f.Outcome}
	for _, k := range d.Kills {
		if f.Action == verdict.Kill && k.Target.PID == f.PID {
			b.Kill = k
		}
	}
	for _, a := range d.Actions {
		if f.Action == a.Action && (a.Target == nil || a.Target.PID == f.PID) {
			b.Act = a
		}
	}
	_, err := t.append(kindAction, run, at, b)
	return err
}
