package respond

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/ntguest"
	"vmav.dev/vmav/internal/scan"
	"vmav.dev/vmav/internal/scan/scantest"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/verdict"
	"vmav.dev/vmav/internal/winstruct"
	"vmav.dev/vmav/internal/winstruct/winstructtest"
)

// What a verdict on suspend comes to, by what libvirt does. The running domain is in
// internal/e2e.
func TestSuspend(t *testing.T) {
	src, _ := scantest.Guest(t, ntguest.Options{Build: "10.0.19041", Seed: 1})
	src = source.NewCache(src, 4096)
	by := scanner(scantest.Engine(t))
	for _, tt := range []struct {
		name    string
		state   string
		dryRun  bool
		paused  bool  // before
		err     error // of libvirt's call
		deaf    bool  // it says that it did, and did not
		none    bool  // there is no libvirt
		outcome finding.Code
		why     string
		calls   int
	}{
		{name: "running", state: "running", outcome: finding.OutcomeSuspended, calls: 1},
		{name: "paused", state: "paused", paused: true, outcome: finding.OutcomeSuspended, why: "paused already"},
		{name: "refused by libvirt", state: "running", err: errors.New("no"), outcome: finding.OutcomeFailed, why: "no", calls: 1},
		{name: "without effect", state: "running", deaf: true, outcome: finding.OutcomeFailed, why: "does not say", calls: 1},
		{name: "dry run", state: "running", dryRun: true, outcome: finding.OutcomePlanned},
		{name: "image", state: scan.StateImage, none: true, outcome: finding.OutcomeRefused, why: "nothing runs in a memory image"},
		{name: "no libvirt", state: "running", none: true, outcome: finding.OutcomeRefused, why: "no libvirt"},
	} {
		calls, paused := 0, tt.paused
		target := scan.Target{Name: "win", State: tt.state, Source: src}
		if !tt.none {
			target.Domain = &libvirt{paused: func() bool { return paused },
				suspend: func() error { calls++; paused = paused || tt.err == nil && !tt.deaf; return tt.err }}
		}
		policy := verdict.Always(verdict.Suspend)
		policy.DryRun = tt.dryRun
		got := respondTo(t, by, target, Options{Policy: policy})
		if len(got.Actions) != 1 || len(got.Findings) != 1 || calls != tt.calls {
			t.Errorf("%s: %d calls, %+v", tt.name, calls, got)
			continue
		}
		a, f := got.Actions[0], got.Findings[0]
		if a.Action != verdict.Suspend || a.Code != tt.outcome || !strings.Contains(a.Reason, tt.why) || (a.Applied != nil) != (tt.name == "running") {
			t.Errorf("%s: %+v", tt.name, a)
		}
		if f.Action != verdict.Suspend || f.Outcome != a.Outcome || f.Done() != a.Code.Done() {
			t.Errorf("%s: finding %+v", tt.name, f)
		}
		// What did not happen leaves the result incomplete, where it could have.
		if want := !a.Code.Done() && tt.state != scan.StateImage; (got.Status == finding.StatusIncomplete) != want || len(got.Errors) > 0 != want {
			t.Errorf("%s: %s, %v", tt.name, got.Status, got.Errors)
		}
	}
}

// Nobody can be killed or held in a memory image: that is said, and is no error.
func TestNothingIsDoneInAnImage(t *testing.T) {
	src, _ := scantest.Guest(t, ntguest.Options{Build: "10.0.19041", Seed: 1})
	for _, action := range []verdict.Action{verdict.Kill, verdict.Hold} {
		got := respondTo(t, scanner(scantest.Finder{}), scan.Target{Name: "win", State: scan.StateImage, Source: src}, Options{Policy: verdict.Always(action)})
		if got.Status != finding.StatusScanned || len(got.Errors) != 0 || len(got.Findings) != 1 || len(got.Kills)+len(got.Actions) != 1 {
			t.Fatalf("%s: %+v", action, got)
		}
		if f := got.Findings[0]; f.Action != action || f.Code != finding.OutcomeRefused || f.Reason != errImage.Error() {
			t.Errorf("%s: %+v", action, f)
		}
	}
}

// What a service knows is told of once, but where something is to be done about it.
func TestWhatIsKnownIsToldOnce(t *testing.T) {
	src, _ := scantest.Guest(t, ntguest.Options{Build: "10.0.19041", Seed: 1})
	target := scan.Target{Name: "win", Source: src}
	known := new(Known)
	try := func(what string, l *listener, a verdict.Action, fresh bool) {
		t.Helper()
		l.check = func(*finding.Finding, scan.Content) {}
		got := respondTo(t, scanner(scantest.Finder{}), target, Options{Policy: verdict.Always(a), Known: known, Recorder: l})
		if len(got.Findings) != 1 || len(l.found) == 1 != fresh || len(Fresh(got.Findings)) == 1 != fresh {
			t.Errorf("%s: %d recorded, %+v", what, len(l.found), got.Findings)
		}
	}
	lost := &listener{found: map[int64]finding.Finding{}, err: errors.New("the disk is full")}
	try("that was not recorded", lost, verdict.Report, true)
	try("that is new", &listener{found: map[int64]finding.Finding{}}, verdict.Report, true)
	try("that is known", &listener{found: map[int64]finding.Finding{}}, verdict.Report, false)
	try("that is to be killed", &listener{found: map[int64]finding.Finding{}}, verdict.Kill, true)
}

// forger is a scanner that claims what is not for a scanner to say.
type forger struct{ finding.Finding }

func (f forger) Scan(ctx context.Context, t scan.Target, _ scan.Request, on scan.Events) (finding.Scan, error) {
	on.Found(ctx, scan.Found{Finding: f.Finding})
	d := scan.Empty(t)
	d.Status = finding.StatusScanned
	return d, nil
}

// A worker that was taken over cannot claim that a finding has a record or evidence, which
// would be those of another guest.
func TestAScannerHasNoSayInRecordsAndEvidence(t *testing.T) {
	by := forger{finding.Finding{ID: 7, Kind: finding.KindSignature, Signature: "A", Action: verdict.Kill,
		Outcome: finding.Outcome{Code: finding.OutcomeKilled}, Verdict: verdict.Verdict{Action: verdict.Kill},
		Evidence: []finding.Exhibit{{Kind: finding.ExhibitScanned, SHA256: "aa"}}, Again: true}}
	got := respondTo(t, by, scan.Target{Name: "win"}, Options{})
	if len(got.Findings) != 1 {
		t.Fatalf("%+v", got)
	}
	if f := got.Findings[0]; f.ID != 0 || f.Evidence != nil || f.Again || f.Verdict.Action != verdict.Report || f.Action != verdict.Report ||
		f.Code != finding.OutcomeReported {
		t.Errorf("%+v", f)
	}
}

// What could not be recorded of a finding in the kernel names no process.
func TestAKernelFindingThatIsNotRecorded(t *testing.T) {
	l := &listener{found: map[int64]finding.Finding{}, err: errors.New("the disk is full"), check: func(*finding.Finding, scan.Content) {}}
	got := respondTo(t, forger{finding.Finding{Kind: finding.KindSignature, Signature: "A"}}, scan.Target{Name: "win"}, Options{Recorder: l})
	if len(got.Errors) != 1 || got.Errors[0].What != "record of A in the kernel" {
		t.Errorf("%v", got.Errors)
	}
}

// A policy sees what a scan knows of a process and its file.
func TestThePolicySeesTheProcess(t *testing.T) {
	src, truth := scantest.Guest(t, ntguest.Options{Build: "10.0.19041", Seed: 1})
	got := respondTo(t, scanner(scantest.Engine(t)), scan.Target{Name: "win", State: scan.StateImage, Source: src}, Options{})
	if len(got.Findings) != 1 {
		t.Fatalf("%+v", got)
	}
	f := got.Findings[0]
	for _, p := range truth.Processes {
		if p.PID != f.PID {
			continue
		}
		parent := ""
		for _, q := range truth.Processes {
			if q.PID == p.PPID {
				parent = q.Name
			}
		}
		s := f.Subject
		if s.Domain != "win" || s.Name != p.Name || s.Path != p.Path || int(s.Session) != p.Session || s.Parent != parent || parent == "" || s.Kernel ||
			s.Inferred || s.Critical {
			t.Errorf("%+v of %+v", s, p)
		}
		if !strings.HasSuffix(p.Path, f.File) || f.File == "" {
			t.Errorf("file %q of %q", f.File, p.Path)
		}
	}
	if facts := f.Facts(); facts.Kind != verdict.KindSignature || facts.Signature != f.Signature || facts.SHA256 != f.SHA256 || facts.Image != f.File ||
		facts.Memory || facts.Exact != f.Fidelity.Exact {
		t.Errorf("%+v", facts)
	}
}

// libvirt is a domain whose state a test sets.
type libvirt struct {
	paused  func() bool
	suspend func() error
}

func (l *libvirt) Paused() bool                  { return l.paused() }
func (l *libvirt) Suspend(context.Context) error { return l.suspend() }

// A kill that cannot be done is no less than an error, and the finding says why.
func TestAKillWithoutTheModuleLeavesTheResultIncomplete(t *testing.T) {
	src, _ := scantest.Guest(t, ntguest.Options{Build: "10.0.19041", Seed: 1})
	got := respondTo(t, scanner(scantest.Engine(t)), scan.Target{Name: "win", Source: source.NewCache(src, 64)}, Options{Policy: verdict.Always(verdict.Kill)})
	if got.Status != finding.StatusIncomplete || len(got.Errors) != 1 || len(got.Kills) != 1 || got.Kills[0].Code != finding.OutcomeRefused {
		t.Errorf("%+v", got)
	}
	if f := got.Findings[0]; f.Verdict.Action != verdict.Kill || f.Action != verdict.Kill || f.Code != finding.OutcomeRefused {
		t.Errorf("%+v", f)
	}
}

// A guest that is read with the offsets of a near build gives the same findings, and
// nothing is done about them whatever the policy says.
func TestFindingsOfAnInferredProfileAreReportedOnly(t *testing.T) {
	src, truth := scantest.Guest(t, ntguest.Options{Build: "10.0.19041", Seed: 5})
	id := winstruct.Identity{PDB: truth.Kernel.PDB, GUID: truth.Kernel.GUID, Age: truth.Kernel.Age}
	e := scantest.Engine(t)
	o := Options{Policy: verdict.Always(verdict.Kill)}
	target := scan.Target{Name: "win", Source: src}
	exact := respondTo(t, scanner(e), target, o)
	near := scan.Means{Profiles: winstructtest.Without{Store: winstruct.BuiltIn(), Identity: id}, Engine: e, Memory: scan.NewCache()}
	got := respondTo(t, scan.InProcess{Means: near}, target, o)
	if got.Profile != finding.ProfileInferred || got.Missing != id.String() || got.InferredFrom == "" {
		t.Errorf("profile %q, inferred from %q, missing %q", got.Profile, got.InferredFrom, got.Missing)
	}
	if got.Status != finding.StatusScanned || got.Processes != exact.Processes || got.Images != exact.Images || len(got.Findings) != 1 ||
		len(exact.Findings) != 1 {
		t.Fatalf("got  %+v\nwant %+v", got, exact)
	}
	a, b := got.Findings[0], exact.Findings[0]
	if b.Verdict.Action != verdict.Kill || a.Verdict.Action != verdict.Report || !strings.Contains(a.Verdict.Reason, "inferred") {
		t.Errorf("verdicts %+v and, exact, %+v", a.Verdict, b.Verdict)
	}
	if a.Action != verdict.Report || b.Action != verdict.Kill {
		t.Errorf("actions %s and, exact, %s", a.Action, b.Action)
	}
	a.Verdict, a.Action, a.Outcome = b.Verdict, b.Action, b.Outcome
	a.Subject.Inferred = false
	if !reflect.DeepEqual(a, b) {
		t.Errorf("finding %+v, want %+v", a, b)
	}
}
