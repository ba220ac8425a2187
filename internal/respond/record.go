package respond

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"sync"

	"vmav.dev/vmav/internal/evidence"
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/history"
	"vmav.dev/vmav/internal/notify"
	"vmav.dev/vmav/internal/scan"
	"vmav.dev/vmav/internal/verdict"
)

// RecordOptions say where responses are recorded, and who is told of them.
type RecordOptions struct {
	Directory string // of the history; "" to record nothing, and then no evidence is kept
	Origin    history.Origin
	History   history.Limits // that Close keeps

	Evidence string // directory of the evidence
	Limits   evidence.Limits
	Always   bool // evidence of every finding is kept, not only where the verdict says so
	Wanted   bool // evidence may be kept: that it cannot be is an error of OpenRecords

	Tell   *notify.Notifier // nil for nobody; its owner closes it
	DryRun bool             // nothing is done about findings, which those who are told hear
	Warner Warner
}

// Warner is told what the user should know and what is no error of the call.
type Warner interface {
	Warn(format string, args ...any)
}

// Account is the account of one scan: what it finds and what is done about that is
// recorded as it comes about. End records the result and tells those who want to know. A
// result that could not be recorded becomes incomplete.
type Account interface {
	Recorder
	End(ctx context.Context, d *finding.Scan)
}

// Accounts makes the accounts of scans. Records are ones.
type Accounts interface {
	// Account is that of a scan which is about to begin, of everything in a domain or of what
	// is new in it. Of what is new there are many scans, and most find nothing: those leave
	// no record.
	Account(domain, uuid string, everything bool) Account
}

// Records is the history with its evidence, and who is told. It is safe for concurrent use.
type Records struct {
	opt    RecordOptions
	engine *finding.Engine
	db     *history.DB // nil for none

	once  sync.Once
	store *evidence.Store
	err   error // of opening the store
}

// OpenRecords opens the history, and the evidence where that is wanted. The caller closes
// the Records.
func OpenRecords(o RecordOptions) (*Records, error) {
	r := &Records{opt: o}
	if o.Directory == "" {
		return r, nil
	}
	db, err := history.Open(o.Directory)
	if err != nil {
		return nil, err
	}
	r.db = db
	if o.Wanted {
		if _, err := r.evidence(); err != nil {
			db.Close()
			return nil, err
		}
	}
	return r, nil
}

// KeepsEvidence tells whether a policy may have evidence kept.
func KeepsEvidence(p verdict.Policy) bool {
	return slices.ContainsFunc(p.Rules, func(r verdict.Rule) bool { return r.Evidence })
}

// ScannedBy names the engine in the records that begin from now on. It is called before the
// first account.
func (r *Records) ScannedBy(e finding.Engine) { r.engine = &e }

// evidence opens the store when it is first needed.
func (r *Records) evidence() (*evidence.Store, error) {
	r.once.Do(func() { r.store, r.err = evidence.Open(r.opt.Evidence, r.opt.Limits) })
	return r.store, r.err
}

// Kept tells whether there is a history that records are kept in.
func (r *Records) Kept() bool { return r.db != nil }

// Close keeps the limits and closes the history. What fails is warned of.
func (r *Records) Close() {
	if r.db == nil {
		return
	}
	_, err := r.db.Prune(context.Background(), r.opt.Origin, r.opt.History)
	if r.store != nil && err == nil {
		_, err = r.store.Prune()
	}
	if cerr := r.db.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		r.opt.Warner.Warn("%v", err)
	}
}

// Account implements Accounts. The record begins with the first thing there is to record.
func (r *Records) Account(domain, uuid string, everything bool) Account {
	return &account{r: r, run: history.Run{Origin: r.opt.Origin, Operation: history.OperationScan, Domain: domain, UUID: uuid, Engine: r.engine},
		everything: everything}
}

// Begin is Account of everything, whose record begins now: a run that is cut off is then
// seen in the history.
func (r *Records) Begin(ctx context.Context, domain, uuid string) Account {
	a := r.Account(domain, uuid, true).(*account)
	a.begin(ctx)
	return a
}

// account implements Account.
type account struct {
	r          *Records
	run        history.Run
	everything bool

	once sync.Once
	rec  *history.Recorder // nil where nothing is recorded
}

// begin begins the record. Where that cannot be written, the run goes on without.
func (a *account) begin(ctx context.Context) *history.Recorder {
	a.once.Do(func() {
		if a.r.db == nil {
			return
		}
		rec, err := a.r.db.Begin(ctx, a.run)
		if err != nil {
			a.r.opt.Warner.Warn("%v; it is not recorded", err)
			return
		}
		a.rec = rec
	})
	return a.rec
}

// Found implements Recorder: the evidence first, so that a record never points to what is
// not there.
func (a *account) Found(ctx context.Context, f *finding.Finding, c scan.Content) error {
	rec := a.begin(ctx)
	if rec == nil {
		return nil
	}
	var errs []error
	if a.r.opt.Always || f.Verdict.Evidence {
		errs = append(errs, a.r.keep(f, c))
	}
	return errors.Join(append(errs, rec.Found(ctx, f))...)
}

// Acting implements Recorder.
func (a *account) Acting(ctx context.Context, action verdict.Action, findings []finding.Finding) error {
	if rec := a.begin(ctx); rec != nil {
		return rec.Acting(ctx, action, ids(findings)...)
	}
	return nil
}

// Acted implements Recorder.
func (a *account) Acted(ctx context.Context, action verdict.Action, findings []finding.Finding, k *finding.Kill, act *finding.Act) error {
	rec := a.begin(ctx)
	if rec == nil || len(findings) == 0 {
		return nil
	}
	return rec.Acted(ctx, action, findings[0].Outcome, k, act, ids(findings)...)
}

// End implements Account: the record of the result first, then those who are told. An
// interruption keeps it from neither.
func (a *account) End(ctx context.Context, d *finding.Scan) {
	if a.everything {
		a.begin(ctx)
	}
	if a.rec != nil {
		if err := a.rec.End(context.WithoutCancel(ctx), d); err != nil {
			a.r.opt.Warner.Warn("%v", err)
			if d.Status == finding.StatusScanned {
				d.Status = finding.StatusIncomplete
			}
			d.Fail("history", err)
		}
	}
	if a.r.opt.Tell == nil {
		return
	}
	told := *d
	told.Findings = Fresh(d.Findings)
	if a.everything {
		a.r.opt.Tell.Domain(&told, a.r.opt.DryRun)
	} else {
		a.r.opt.Tell.Fresh(&told, a.r.opt.DryRun)
	}
}

// Fresh are those of some findings that no earlier scan told of.
func Fresh(all []finding.Finding) []finding.Finding {
	return slices.DeleteFunc(slices.Clone(all), func(f finding.Finding) bool { return f.Again })
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
func (r *Records) keep(f *finding.Finding, c scan.Content) error {
	store, err := r.evidence()
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
	put(finding.ExhibitScanned, c.Scanned)
	if c.Memory != nil {
		put(finding.ExhibitMemory, c.Memory)
	}
	if c.Fidelity != nil {
		doc, err := json.MarshalIndent(c.Fidelity, "", "  ")
		if err != nil {
			return err
		}
		put(finding.ExhibitFidelity, doc)
	}
	return errors.Join(errs...)
}
