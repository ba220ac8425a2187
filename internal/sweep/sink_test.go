package sweep

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/ntguest"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/verdict"
	"vmav.dev/vmav/internal/winstruct"
)

// listener is a sink that numbers findings and keeps what it is told.
type listener struct {
	mu    sync.Mutex
	next  int64
	told  []string
	found map[int64]finding.Finding
	err   error
	check func(f *finding.Finding, x Exhibit)
}

func (l *listener) Found(_ context.Context, f *finding.Finding, x Exhibit) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next++
	f.ID = l.next
	l.found[f.ID] = *f
	l.told = append(l.told, "found "+string(f.Verdict.Action))
	l.check(f, x)
	return l.err
}

func (l *listener) Acting(_ context.Context, a verdict.Action, f []finding.Finding) error {
	l.told = append(l.told, fmt.Sprintf("acting %s %d", a, len(f)))
	return l.err
}

func (l *listener) Acted(_ context.Context, a verdict.Action, f []finding.Finding, k *finding.Kill, act *finding.Act) error {
	var o finding.Outcome
	if k != nil {
		o = k.Outcome
	} else {
		o = act.Outcome
	}
	l.told = append(l.told, fmt.Sprintf("acted %s %d %s", a, len(f), o.Code))
	if f[0].Action != a || f[0].Outcome != o {
		l.told = append(l.told, "too early")
	}
	return l.err
}

// Every finding reaches the sink with the bytes that it was found in, and has the number
// that the sink gave it; implants and changed code, too.
func TestASinkGetsEveryFindingAndItsBytes(t *testing.T) {
	var kinds sync.Map
	l := &listener{found: map[int64]finding.Finding{}}
	l.check = func(f *finding.Finding, x Exhibit) {
		kinds.Store(f.Kind+" "+f.Fidelity.Form, true)
		if sum := fmt.Sprintf("%x", sha256.Sum256(x.Scanned)); sum != f.SHA256 {
			t.Errorf("%s: bytes with the SHA-256 %s, want %s", f.Signature, sum, f.SHA256)
		}
		if (x.Fidelity != nil) != (f.Fidelity.Form == finding.FormFile) || x.Fidelity != nil && uint64(len(x.Memory)) < f.Size {
			t.Errorf("%s of %d bytes: %d bytes of memory, fidelity %v", f.Signature, f.Size, len(x.Memory), x.Fidelity)
		}
	}
	src, _ := guest(t, ntguest.Options{Build: "10.0.19041", Seed: 3, Implants: true})
	got, err := Domain(context.Background(), Target{Name: "win", Source: src}, winstruct.BuiltIn(), implantEngine(t), NewCache(), Options{Sink: l})
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Findings) < 3 || len(got.Findings) != len(l.found) {
		t.Errorf("%d findings, %d told", len(got.Findings), len(l.found))
	}
	for _, f := range got.Findings {
		if told := l.found[f.ID]; told.Signature != f.Signature || told.PID != f.PID || told.Base != f.Base {
			t.Errorf("number %d: %+v, told %+v", f.ID, f, told)
		}
	}
	for _, want := range []string{"signature file", "signature memory", "modified file"} {
		if _, ok := kinds.Load(want); !ok {
			t.Errorf("no finding that is %s", want)
		}
	}
}

// What is done is told of in its order; a kill that cannot be begun was not asked of the
// guest. A sink that fails leaves the sweep incomplete and does not end it.
func TestASinkThatFailsLeavesTheSweepIncomplete(t *testing.T) {
	e := engine(t)
	src, _ := guest(t, ntguest.Options{Build: "10.0.19041", Seed: 1})
	for _, fails := range []error{nil, errors.New("the disk is full")} {
		l := &listener{found: map[int64]finding.Finding{}, err: fails, check: func(*finding.Finding, Exhibit) {}}
		opt := Options{MinCoverage: DefaultMinCoverage, Sink: l}
		got, err := Domain(context.Background(), Target{Name: "win", Source: src}, winstruct.BuiltIn(), e, NewCache(), opt)
		if err != nil || len(got.Findings) != 1 {
			t.Fatalf("%+v, %v", got, err)
		}
		want := finding.StatusScanned
		if fails != nil {
			want = finding.StatusIncomplete
		}
		if got.Status != want || (len(got.Errors) != 0) != (fails != nil) || fails != nil && !strings.Contains(got.Errors[0].Error, fails.Error()) {
			t.Errorf("%v: status %s, errors %v", fails, got.Status, got.Errors)
		}
	}
	paused := false
	target := Target{Name: "win", Source: source.NewCache(src, 64), Paused: func() bool { return paused }, Suspend: func(context.Context) error { paused = true; return nil }}
	dry := verdict.Always(verdict.Suspend)
	dry.DryRun = true
	for _, c := range []struct {
		policy verdict.Policy
		want   string
	}{
		{verdict.Always(verdict.Kill), "found kill, acted kill 1 refused"},
		{verdict.Always(verdict.Hold), "found hold, acted hold 1 refused"},
		{dry, "found suspend, acted suspend 1 planned"},
		{verdict.Always(verdict.Suspend), "found suspend, acting suspend 1, acted suspend 1 suspended"},
	} {
		l := &listener{found: map[int64]finding.Finding{}, check: func(*finding.Finding, Exhibit) {}}
		if _, err := Domain(context.Background(), target, winstruct.BuiltIn(), e, NewCache(), Options{MinCoverage: DefaultMinCoverage, Policy: c.policy, Sink: l}); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(l.told, ", "); got != c.want {
			t.Errorf("told: %s, want %s", got, c.want)
		}
	}
}
