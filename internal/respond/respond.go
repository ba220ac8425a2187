package respond

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/kill"
	"vmav.dev/vmav/internal/scan"
	"vmav.dev/vmav/internal/verdict"
	"vmav.dev/vmav/internal/winstruct"
)

// Options say how to respond to what a scan finds.
type Options struct {
	Policy   verdict.Policy
	Kill     kill.Options     // for kills and holds; its policy is Policy
	Profiles winstruct.Finder // used when an action has to read the guest
	Kills    sync.Locker      // locked while processes are killed; nil for none
	Holder   Holder           // takes over the holds; nil if none can be kept
	Recorder Recorder         // nil for none
	Known    *Known           // findings that were recorded before; nil for none
	Observer Observer         // nil for none
}

// Holder takes over held processes and releases them.
type Holder interface {
	Keep(h *kill.Held)
}

// Observer watches a scan. Its methods are those of scan.Events.
type Observer interface {
	// Looked is told of each image that was looked at, if the request asks for that.
	Looked(p introspect.Identity, image scan.ImageKey, whole bool)
	// Progress is told how far the scan is.
	Progress(p scan.Progress)
}

// Recorder is told of findings and actions as they happen, before the result is reported.
// Several goroutines call Found at once. An error makes the result incomplete.
type Recorder interface {
	// Found is called after a finding has been decided on. It may set the finding's ID and
	// Evidence. The content is valid until Found returns. It may be empty if neither the
	// verdict nor scan.Request.Content asks for it, when the finding is known from an
	// earlier scan.
	Found(ctx context.Context, f *finding.Finding, c scan.Content) error
	// Acting is called before an action is carried out for findings, on one process or on
	// the whole domain. It is not called for an action that is only planned or not
	// possible.
	Acting(ctx context.Context, action verdict.Action, findings []finding.Finding) error
	// Acted is called when the outcome of an action is known. The findings have the
	// outcome. k is the record of a kill; if k is nil, a is the record of another action.
	Acted(ctx context.Context, action verdict.Action, findings []finding.Finding, k *finding.Kill, a *finding.Act) error
}

// Suspender is a scan.Domain that can be paused. Suspend returns when libvirt has paused
// it.
type Suspender interface {
	Suspend(context.Context) error
}

// Scan lets a scanner scan a guest and responds to what it finds. The result always says
// what became of the guest. The error is the scanner's, or that of an interruption; the
// result then has what was found until then.
func Scan(ctx context.Context, s scan.Scanner, t scan.Target, req scan.Request, o Options) (finding.Scan, error) {
	begin := time.Now()
	r := &response{target: t, req: req, opt: o, findings: []finding.Finding{}, unread: []finding.Unread{}}
	d, err := s.Scan(ctx, t, req, r)
	if err == nil {
		err = r.act(ctx)
	}
	finding.Sort(r.findings)
	d.Findings, d.Errors, d.Kills, d.Actions = r.findings, r.unread, r.kills, r.actions
	if d.Status == finding.StatusScanned && (len(d.Errors) > 0 || err != nil) {
		d.Status = finding.StatusIncomplete
	}
	d.Timing.Total = time.Since(begin).Seconds()
	return d, err
}

// response is the response to one scan. It implements scan.Events.
type response struct {
	target scan.Target
	req    scan.Request
	opt    Options

	mu       sync.Mutex // guards what follows while the scan goes on
	findings []finding.Finding
	unread   []finding.Unread
	kills    []*finding.Kill
	actions  []*finding.Act
	// doomed are the processes to kill or to hold, by EPROCESS. suspends are the indices of
	// the findings that ask to suspend the domain.
	doomed   map[uint64]*doomed
	suspends []int
}

// Found implements scan.Events. It decides on a finding, records it and notes it.
func (r *response) Found(ctx context.Context, x scan.Found) {
	f := x.Finding
	f.ID, f.Evidence = 0, nil // for the recorder to say, and not for a worker
	f.Verdict = verdict.Decide(r.opt.Policy, f.Facts(), f.Subject)
	f.Action, f.Outcome = verdict.Report, finding.Outcome{Code: finding.OutcomeReported}
	key := keyOf(x.Process, &f)
	f.Again = f.Verdict.Action == verdict.Report && r.opt.Known.has(key)
	if r.opt.Recorder != nil && !f.Again {
		// Record the finding even if the scan was interrupted in the meantime.
		err := r.opt.Recorder.Found(context.WithoutCancel(ctx), &f, x.Content)
		if r.unrecorded(&f, err); err == nil {
			r.opt.Known.add(key) // otherwise it is recorded when it is found again
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.doom(x.Process, f.Verdict.Action, len(r.findings))
	r.findings = append(r.findings, f)
}

// Unread implements scan.Events.
func (r *response) Unread(u finding.Unread) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.unread) < finding.MaxErrors {
		r.unread = append(r.unread, u)
	}
}

// Looked implements scan.Events.
func (r *response) Looked(p introspect.Identity, image scan.ImageKey, whole bool) {
	if r.opt.Observer != nil {
		r.opt.Observer.Looked(p, image, whole)
	}
}

// Progress implements scan.Events.
func (r *response) Progress(p scan.Progress) {
	if r.opt.Observer == nil {
		return
	}
	r.mu.Lock()
	p.Findings = len(r.findings)
	r.mu.Unlock()
	r.opt.Observer.Progress(p)
}

func (r *response) fail(what string, err error) {
	r.Unread(finding.Unread{What: what, Error: err.Error()})
}

// unrecorded notes that the recorder has failed, if err is not nil.
func (r *response) unrecorded(f *finding.Finding, err error) {
	if err != nil {
		r.fail(fmt.Sprintf("record of %s in %s", f.Signature, finding.Where(f.PID, f.Process)), err)
	}
}

var (
	errImage = errors.New("nothing runs in a memory image")
	errKeep  = errors.New("a hold lasts no longer than the program that holds: vmav watch holds, and vmav scan --hold-for")
)
