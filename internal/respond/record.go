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
	Directory string // of the history; if "", nothing is recorded and no evidence is kept
	Origin    history.Origin
	History   history.Limits // limits that Close enforces

	Evidence string // directory of the evidence
	Limits   evidence.Limits
	Always   bool // keep evidence of every finding, whatever its verdict says
	Wanted   bool // evidence may be needed: OpenRecords fails if the store cannot be opened

	Tell   *notify.Notifier // nil for none; the caller closes it
	DryRun bool             // nothing is done about findings, and notifications say so
	Warner Warner
}

// Warner receives messages for the user that are not errors of the call.
type Warner interface {
	Warn(format string, args ...any)
}

// Account records one scan: what it finds, and what is done about that, as it happens. End
// records the result and tells those who want to know. If the result cannot be recorded, it
// becomes incomplete.
type Account interface {
	Recorder
	// End records the result of the scan, which ends the account.
	End(ctx context.Context, d *finding.Scan)
}

// Accounts makes the accounts of scans. Records implements it.
type Accounts interface {
	// Account returns the account of a scan that is about to begin. everything says whether
	// the scan covers the whole domain or only what is new in it. There are many scans of
	// what is new, and most find nothing; these leave no record.
	Account(domain, uuid string, everything bool) Account
}

// Records is the history with its evidence, and those who are told. It is safe for
// concurrent use.
type Records struct {
	opt    RecordOptions
	engine *finding.Engine
	db     *history.DB // nil for none

	once  sync.Once
	store *evidence.Store
	err   error // of opening the store
}

// OpenRecords opens the history, and the evidence store if it is wanted. The caller closes
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

// KeepsEvidence reports whether a rule of a policy asks for evidence.
func KeepsEvidence(p verdict.Policy) bool {
	return slices.ContainsFunc(p.Rules, func(r verdict.Rule) bool { return r.Evidence })
}

// ScannedBy sets the engine that the records name. It must be called before the first
// account is made.
func (r *Records) ScannedBy(e finding.Engine) { r.engine = &e }

// evidence returns the store. It opens the store on the first call.
func (r *Records) evidence() (*evidence.Store, error) {
	r.once.Do(func() { r.store, r.err = evidence.Open(r.opt.Evidence, r.opt.Limits) })
	return r.store, r.err
}

// Kept reports whether there is a history that records are kept in.
func (r *Records) Kept() bool { return r.db != nil }

// Close enforces the limits and closes the history. It warns of what fails.
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

// Begin returns the account of a scan of everything whose record begins now. If the scan is
// cut off, the history shows that it began.
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
	err  error             // why nothing is recorded although there is a history
}

// begin begins the record, on the first call. If the record cannot be written, the scan
// goes on without it.
func (a *account) begin(ctx context.Context) *history.Recorder {
	a.once.Do(func() {
		if a.r.db == nil {
			return
		}
		if a.rec, a.err = a.r.db.Begin(ctx, a.run); a.err != nil {
			a.rec = nil
			a.r.opt.Warner.Warn("%v; it is not recorded", a.err)
		}
	})
	return a.rec
}

// Found implements Recorder. It stores the evidence first, so that a record never points to
// evidence that is not there.
func (a *account) Found(ctx context.Context, f *finding.Finding, c scan.Content) error {
	rec := a.begin(ctx)
	if rec == nil {
		return a.err // a service that believed it to be recorded would never record it
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

// End implements Account. It records the result first and then tells others. An
// interruption prevents neither.
func (a *account) End(ctx context.Context, d *finding.Scan) {
	if a.everything {
		a.begin(ctx)
	}
	if a.rec != nil {
		own := *d
		if fresh := Fresh(d.Findings); len(fresh) < len(d.Findings) {
			own.Findings = fresh // the others have records
		}
		if err := a.rec.End(context.WithoutCancel(ctx), &own); err != nil {
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

// Fresh returns the findings that no earlier scan has reported.
func Fresh(all []finding.Finding) []finding.Finding {
	return slices.DeleteFunc(slices.Clone(all), func(f finding.Finding) bool { return f.Again })
}

// ids returns the IDs of the findings that have a record.
func ids(findings []finding.Finding) []int64 {
	var out []int64
	for _, f := range findings {
		if f.ID != 0 {
			out = append(out, f.ID)
		}
	}
	return out
}

// keep stores the evidence of a finding and lists in the finding what was stored.
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
