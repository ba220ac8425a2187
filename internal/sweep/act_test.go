package sweep

import (
	"context"
	"errors"
	"strings"
	"testing"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/ntguest"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/verdict"
	"vmav.dev/vmav/internal/winstruct"
)

// What a verdict on suspend comes to, by what libvirt does. The running domain is in
// internal/e2e.
func TestSuspend(t *testing.T) {
	src, _ := guest(t, ntguest.Options{Build: "10.0.19041", Seed: 1})
	src = source.NewCache(src, 4096)
	e, cache := engine(t), NewCache()
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
		{name: "image", state: StateImage, none: true, outcome: finding.OutcomeRefused, why: "nothing runs in a memory image"},
		{name: "no libvirt", state: "running", none: true, outcome: finding.OutcomeRefused, why: "no libvirt"},
	} {
		calls, paused := 0, tt.paused
		target := Target{Name: "win", State: tt.state, Source: src}
		if !tt.none {
			target.Paused = func() bool { return paused }
			target.Suspend = func(context.Context) error { calls++; paused = paused || tt.err == nil && !tt.deaf; return tt.err }
		}
		policy := verdict.Always(verdict.Suspend)
		policy.DryRun = tt.dryRun
		got, err := Domain(context.Background(), target, winstruct.BuiltIn(), e, cache, Options{MinCoverage: DefaultMinCoverage, Policy: policy})
		if err != nil {
			t.Fatal(err)
		}
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
		// What did not happen leaves the sweep incomplete, where it could have.
		if want := !a.Code.Done() && tt.state != StateImage; (got.Status == finding.StatusIncomplete) != want || len(got.Errors) > 0 != want {
			t.Errorf("%s: %s, %v", tt.name, got.Status, got.Errors)
		}
	}
}

// A policy sees what a sweep knows of a process and its file.
func TestThePolicySeesTheProcess(t *testing.T) {
	src, truth := guest(t, ntguest.Options{Build: "10.0.19041", Seed: 1})
	got, err := Domain(context.Background(), Target{Name: "win", State: StateImage, Source: src}, winstruct.BuiltIn(), engine(t), NewCache(), Options{MinCoverage: DefaultMinCoverage})
	if err != nil || len(got.Findings) != 1 {
		t.Fatalf("%+v, %v", got, err)
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
		if s.Domain != "win" || s.Name != p.Name || s.Path != p.Path || int(s.Session) != int(p.Session) || s.Parent != parent || parent == "" || s.Kernel || s.Inferred || s.Critical {
			t.Errorf("%+v of %+v", s, p)
		}
		if !strings.HasSuffix(p.Path, f.File) || f.File == "" {
			t.Errorf("file %q of %q", f.File, p.Path)
		}
	}
	if facts := f.Facts(); facts.Kind != verdict.KindSignature || facts.Signature != f.Signature || facts.SHA256 != f.SHA256 || facts.Image != f.File || facts.Memory || facts.Exact != f.Fidelity.Exact {
		t.Errorf("%+v", facts)
	}
}
