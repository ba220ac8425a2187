package scan

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"vmav.dev/vmav/internal/clam"
	"vmav.dev/vmav/internal/clam/answer"
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/ntguest"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/source/image"
	"vmav.dev/vmav/internal/winstruct"
	"vmav.dev/vmav/internal/winstruct/winstructtest"
)

// marker is in the code of the guest's malware.exe (testdata/ntguest/user/malware.c).
const marker = "VMAV-TEST-MALWARE"

// engine starts a clamd that knows the malware in programs.
func engine(t testing.TB) *clam.Engine {
	t.Helper()
	return engineFor(t, "Vmav.Test.Malware:1:*:"+hex.EncodeToString([]byte(marker))+"\n")
}

// engineFor starts a clamd with the signatures in the text of an .ndb file.
func engineFor(t testing.TB, signatures string) *clam.Engine {
	t.Helper()
	db := filepath.Join(t.TempDir(), "test.ndb")
	if err := os.WriteFile(db, []byte(signatures), 0o644); err != nil {
		t.Fatal(err)
	}
	e, err := clam.Open(context.Background(), clam.Options{Databases: []string{db}, TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

// guest writes a test guest's memory to a file and opens it.
func guest(t testing.TB, opts ntguest.Options) (source.Source, *ntguest.Truth) {
	t.Helper()
	m, err := ntguest.Lay(opts)
	if err != nil {
		t.Fatal(err)
	}
	return imageOf(t, m), m.Truth
}

// imageOf writes a laid-out guest to a file and opens it.
func imageOf(t testing.TB, m *ntguest.Machine) source.Source {
	t.Helper()
	path := filepath.Join(t.TempDir(), "guest.raw")
	if err := m.Save(path); err != nil {
		t.Fatal(err)
	}
	src, err := image.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src
}

func TestTheInfectedProcessIsFoundAndNoOther(t *testing.T) {
	e := engine(t)
	cache := NewCache()
	for i, build := range []string{"6.1.7601", "10.0.19041", "10.0.22000", "6.1.7601-x86", "6.1.7601-x86-pae", "10.0.19041-x86"} {
		m, err := ntguest.Lay(ntguest.Options{Build: build, Seed: uint64(i)})
		if err != nil {
			t.Fatal(err)
		}
		src, truth := imageOf(t, m), m.Truth
		build, _, _ := strings.Cut(build, "-")
		var last Progress
		got, err := look(context.Background(), Target{Name: "win", State: "image", Source: src},
			Means{Profiles: winstructtest.With{Store: winstruct.BuiltIn(), Profile: m.Profile()}, Engine: e, Memory: cache},
			options{MinCoverage: DefaultMinCoverage, Progress: func(p Progress) {
				if p.Done > last.Done { // they come in any order
					last = p
				}
			}})
		if err != nil {
			t.Fatal(err)
		}
		if got.Status != finding.StatusScanned || got.Build != build {
			t.Errorf("%s: status %s (%s), build %s", build, got.Status, got.Reason, got.Build)
		}
		for _, e := range got.Errors {
			t.Errorf("%s: %s: %s", build, e.What, e.Error)
		}
		images := len(truth.Drivers) - 1
		var want uint64
		for _, p := range truth.Processes {
			images += len(p.Modules)
			if p.Name == "malware.exe" {
				want = p.PID
			}
		}
		if got.Processes != len(truth.Processes) || got.Images != images || last.Done != images || last.Total != images {
			t.Errorf("%s: %d processes and %d images (progress %+v), want %d and %d", build, got.Processes, got.Images, last, len(truth.Processes), images)
		}
		if len(got.Findings) != 1 || got.Findings[0].PID != want || got.Findings[0].Signature != "Vmav.Test.Malware" {
			t.Errorf("%s: findings %+v, want one, in pid %d", build, got.Findings, want)
		}
	}
}

// Windows after 22000 is scanned as its truth says, with the profile of its kernel and with
// no more than the layout of its build.
func TestNewWindowsIsScanned(t *testing.T) {
	e := engine(t)
	cache := NewCache()
	for _, build := range []string{"10.0.22621", "10.0.22631", "10.0.26100", "10.0.26200"} {
		m, err := ntguest.Lay(ntguest.Options{Build: build, Seed: 5})
		if err != nil {
			t.Fatal(err)
		}
		src := imageOf(t, m)
		for _, inferred := range []bool{false, true} {
			store := winstruct.BuiltIn()
			means := Means{Profiles: winstructtest.With{Store: store, Profile: m.Profile()}, Engine: e, Memory: cache}
			profile := m.Build.Identity.Key()
			if inferred {
				means.Profiles, profile = winstructtest.Without{Store: store, Identity: m.Build.Identity}, finding.ProfileInferred
			}
			got, err := look(context.Background(), Target{Name: "win", State: "image", Source: src}, means, options{MinCoverage: DefaultMinCoverage})
			if err != nil {
				t.Fatal(err)
			}
			images := len(m.Truth.Drivers) - 1
			var want uint64
			for _, p := range m.Truth.Processes {
				if images += len(p.Modules); p.Name == "malware.exe" {
					want = p.PID
				}
			}
			if got.Status != finding.StatusScanned || got.Build != build || got.Profile != profile || len(got.Errors) != 0 ||
				got.Processes != len(m.Truth.Processes) || got.Images != images {
				t.Errorf("%s: %s (%s) of build %s with profile %s, %d processes and %d images of %d and %d, errors %v", build, got.Status, got.Reason,
					got.Build, got.Profile, got.Processes, got.Images, len(m.Truth.Processes), images, got.Errors)
			}
			if len(got.Findings) != 1 || got.Findings[0].PID != want || got.Findings[0].Signature != "Vmav.Test.Malware" {
				t.Errorf("%s: findings %+v, want one, in pid %d", build, got.Findings, want)
			}
		}
	}
}

func TestOnlyTheProcessesAskedFor(t *testing.T) {
	src, truth := guest(t, ntguest.Options{Build: "10.0.19041", Seed: 5})
	p := truth.Processes[len(truth.Processes)-4]
	got, err := look(context.Background(), Target{Name: "win", Source: src}, builtIn(engine(t), NewCache()), options{PIDs: []uint64{p.PID}})
	if err != nil || got.Processes != 1 || got.Images != len(p.Modules) {
		t.Errorf("%+v, %v; want one process with %d images", got, err, len(p.Modules))
	}
	got, err = look(context.Background(), Target{Name: "win", Source: src}, builtIn(engine(t), NewCache()), options{PIDs: []uint64{3}})
	if err != nil || got.Status != finding.StatusFailed || !strings.Contains(got.Reason, "no process 3") {
		t.Errorf("a pid that is not there: %+v, %v", got, err)
	}
}

// flaky is a Source that fails from one read on.
type flaky struct {
	source.Source
	left int
	err  error
}

func (f *flaky) ReadPhys(p []byte, addr uint64) error {
	if f.left--; f.left < 0 {
		return &source.AccessError{Addr: addr, Size: len(p), Err: f.err}
	}
	return f.Source.ReadPhys(p, addr)
}

func TestAGuestThatGoesAwayIsNeverClean(t *testing.T) {
	src, _ := guest(t, ntguest.Options{Build: "10.0.19041", Seed: 5})
	e := engine(t)
	for _, left := range []int{0, 3, 100, 1000, 5000} {
		got, _ := look(context.Background(), Target{Name: "win", Source: &flaky{src, left, source.ErrGone}}, builtIn(e, NewCache()), options{Jobs: 1})
		text := got.Reason
		for _, e := range got.Errors {
			text += e.Error
		}
		if got.Status == finding.StatusScanned || got.Status == finding.StatusSkipped || !strings.Contains(text, source.ErrGone.Error()) {
			t.Errorf("gone after %d reads: status %s, reason %q, errors %v", left, got.Status, got.Reason, got.Errors)
		}
	}
}

// refusing is an engine that fails on its third file.
type refusing struct {
	n   int
	res answer.Result
	err error
}

func (r *refusing) Scan(_ context.Context, name string, _ []byte) (answer.Result, error) {
	if r.n++; r.n == 3 {
		return r.res, r.err
	}
	return answer.Result{}, nil
}

func TestWhatTheEngineDidNotReadIsNotClean(t *testing.T) {
	src, _ := guest(t, ntguest.Options{Build: "10.0.19041", Seed: 5})
	gone := fmt.Errorf("scan: %w", answer.ErrEngineGone)
	for name, r := range map[string]*refusing{"skipped": {res: answer.Result{Skipped: "limit"}}, "failed": {err: errors.New("odd reply")},
		"gone": {err: gone}} {
		got, err := look(context.Background(), Target{Name: "win", Source: src}, builtIn(r, NewCache()), options{Jobs: 1})
		if got.Status != finding.StatusIncomplete || len(got.Errors) == 0 {
			t.Errorf("%s: status %s, errors %v", name, got.Status, got.Errors)
		}
		if (name == "gone") != errors.Is(err, answer.ErrEngineGone) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func TestInterruptedScanStops(t *testing.T) {
	src, _ := guest(t, ntguest.Options{Build: "10.0.19041", Seed: 5})
	ctx, cancel := context.WithCancel(context.Background())
	got, err := look(ctx, Target{Name: "win", Source: src}, builtIn(engine(t), NewCache()), options{Progress: func(p Progress) {
		if p.Done == 3 {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) || got.Status == finding.StatusScanned {
		t.Errorf("status %s, %v", got.Status, err)
	}
}

// A guest that is read with the offsets of a near build gives the same findings,
// which say that it was.
func TestAnInferredProfileFindsTheSame(t *testing.T) {
	src, truth := guest(t, ntguest.Options{Build: "10.0.19041", Seed: 5})
	id := winstruct.Identity{PDB: truth.Kernel.PDB, GUID: truth.Kernel.GUID, Age: truth.Kernel.Age}
	e := engine(t)
	opt := options{MinCoverage: DefaultMinCoverage}
	exact, err := look(context.Background(), Target{Name: "win", Source: src}, builtIn(e, NewCache()), opt)
	if err != nil {
		t.Fatal(err)
	}
	got, err := look(context.Background(), Target{Name: "win", Source: src},
		Means{Profiles: winstructtest.Without{Store: winstruct.BuiltIn(), Identity: id}, Engine: e, Memory: NewCache()}, opt)
	if err != nil {
		t.Fatal(err)
	}
	if got.Profile != finding.ProfileInferred || got.Missing != id.String() || got.InferredFrom == "" {
		t.Errorf("profile %q, inferred from %q, missing %q", got.Profile, got.InferredFrom, got.Missing)
	}
	if got.Status != finding.StatusScanned || got.Processes != exact.Processes || got.Images != exact.Images || len(got.Findings) != 1 ||
		len(exact.Findings) != 1 {
		t.Fatalf("got  %+v\nwant %+v", got, exact)
	}
	a, b := got.Findings[0], exact.Findings[0]
	if !a.Subject.Inferred || b.Subject.Inferred {
		t.Errorf("subjects %+v and, exact, %+v", a.Subject, b.Subject)
	}
	a.Subject.Inferred = false
	if !reflect.DeepEqual(a, b) {
		t.Errorf("finding %+v, want %+v", a, b)
	}
}
