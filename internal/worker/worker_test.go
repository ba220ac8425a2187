package worker

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"vmav.dev/vmav/internal/clam"
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/ntguest"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/source/image"
	"vmav.dev/vmav/internal/sweep"
	"vmav.dev/vmav/internal/verdict"
	"vmav.dev/vmav/internal/winstruct"
	"vmav.dev/vmav/internal/winstruct/winstructtest"
)

// TestMain is a worker where it is started as one: its own program is what a Runner
// starts. With a further argument it is code in a worker's place (strangers).
func TestMain(m *testing.M) {
	if Inside(os.Args) {
		status, err := inside(os.Args)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(status)
	}
	os.Exit(m.Run())
}

func inside(args []string) (int, error) {
	if len(args) <= 6 {
		return Main(args)
	}
	ls, _, abi, err := enter(args)
	if err != nil {
		return exitNoSandbox, err
	}
	do := strangers[args[6]]
	if do == nil {
		return exitFailed, fmt.Errorf("no stranger %q", args[6])
	}
	if !slices.Contains(args, "another protocol") { // which is how it begins
		w := &inmate{lanes: ls, abi: abi}
		if _, err := w.next(); err != nil {
			return exitFailed, err
		}
	}
	if err := do(ls, args[7:]); err != nil {
		return exitFailed, err
	}
	return 0, nil
}

// marker is in the code of the guest's malware.exe (testdata/ntguest/user/malware.c).
const malware = "VMAV-TEST-MALWARE"

// engineOf starts an engine that knows the guest's malware.
func engineOf(t testing.TB) *clam.Engine {
	t.Helper()
	db := filepath.Join(t.TempDir(), "test.ndb")
	if err := os.WriteFile(db, []byte("Vmav.Test.Malware:1:*:"+hex.EncodeToString([]byte(malware))+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	e, err := clam.Open(context.Background(), clam.Options{Databases: []string{db}, TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

// finder is an engine for tests that are not about one: it looks for the marker.
type finder struct{}

// Identity implements sweep.Identified.
func (finder) Identity(context.Context) string { return "finder" }

func (finder) Scan(_ context.Context, _ string, data []byte) (clam.Result, error) {
	if strings.Contains(string(data), malware) {
		return clam.Result{Signature: "Vmav.Test.Malware"}, nil
	}
	return clam.Result{}, nil
}

// guestOf writes a test guest's memory to a file and opens it.
func guestOf(t testing.TB, opts ntguest.Options) (source.Source, *ntguest.Truth) {
	t.Helper()
	m, err := ntguest.Lay(opts)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "guest.raw")
	if err := m.Save(path); err != nil {
		t.Fatal(err)
	}
	src, err := image.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { src.Close() })
	return src, m.Truth
}

// The result of a sweep in a worker is that of one in this process, whichever way the
// profile is found.
func TestAWorkerFindsWhatASweepFinds(t *testing.T) {
	e := engineOf(t)
	src, truth := guestOf(t, ntguest.Options{Build: "10.0.19041", Seed: 3})
	id := winstruct.Identity{PDB: truth.Kernel.PDB, GUID: truth.Kernel.GUID, Age: truth.Kernel.Age}
	// The image's memory is mapped by the worker; through another source it is asked for.
	asked := struct{ source.Source }{src}
	for name, profiles := range map[string]winstruct.Finder{
		"asked":    winstruct.BuiltIn(),
		"packed":   winstruct.BuiltIn(),
		"found":    struct{ winstruct.Finder }{winstruct.BuiltIn()},
		"inferred": winstructtest.Without{Store: winstruct.BuiltIn(), Identity: id},
		"missing":  struct{ winstruct.Finder }{winstructtest.Without{Store: winstruct.BuiltIn(), Identity: id}},
	} {
		target := sweep.Target{Name: "win", UUID: "u", State: "image", Source: source.NewCache(src, 64)}
		if name == "asked" {
			target.Source = asked
		}
		opt := sweep.Options{MinCoverage: sweep.DefaultMinCoverage}
		want, err := sweep.Domain(context.Background(), target, profiles, e, sweep.NewCache(), opt)
		if err != nil {
			t.Fatal(err)
		}
		var last sweep.Progress
		opt.Progress = func(p sweep.Progress) { last = p }
		got, err := Domain(context.Background(), target, profiles, e, sweep.NewCache(), opt)
		if err != nil {
			t.Fatal(err)
		}
		if got.Timing.Total == 0 || last.Done != got.Images || last.Total != got.Images {
			t.Errorf("%s: timing %+v, progress %+v of %d images", name, got.Timing, last, got.Images)
		}
		got.Timing, want.Timing = finding.Timing{}, finding.Timing{}
		got.Unchanged, want.Unchanged = 0, 0 // two jobs may rebuild the same at once
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got  %+v\nwant %+v", name, got, want)
		}
		if name != "missing" && len(got.Findings) != 1 {
			t.Errorf("%s: %d findings", name, len(got.Findings))
		}
	}
}

// Layouts come to the worker as profiles do.
func TestAWorkerReads32BitGuests(t *testing.T) {
	src, _ := guestOf(t, ntguest.Options{Build: "6.1.7601-x86", Seed: 3})
	got, err := Domain(context.Background(), sweep.Target{Name: "win", Source: src}, winstruct.BuiltIn(), finder{}, sweep.NewCache(), sweep.Options{})
	if err != nil || got.Status != finding.StatusScanned || got.Profile != finding.ProfileInferred || len(got.Findings) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
}

// What the broker's cache knows is not scanned again, and counted so.
func TestTheCacheIsTheBrokers(t *testing.T) {
	src, _ := guestOf(t, ntguest.Options{Build: "10.0.19041", Seed: 3})
	cache := sweep.NewCache()
	var files []int
	for range 2 {
		got, err := Domain(context.Background(), sweep.Target{Name: "win", Source: src}, winstruct.BuiltIn(), finder{}, cache, sweep.Options{})
		if err != nil || len(got.Findings) != 1 {
			t.Fatalf("%+v, %v", got, err)
		}
		if files = append(files, got.Files); len(files) == 2 && got.Unchanged < got.Images-1 {
			t.Errorf("%d of %d images are recognised", got.Unchanged, got.Images)
		}
	}
	if files[0] == 0 || files[1] != 0 {
		t.Errorf("distinct files of two sweeps: %v, want none in the second", files)
	}
}

// Findings are the broker's to decide on, by the facts that the worker reports.
func TestTheBrokerDecides(t *testing.T) {
	src, _ := guestOf(t, ntguest.Options{Build: "10.0.19041", Seed: 3})
	target := sweep.Target{Name: "win", Source: src, State: "running"}
	calls := 0
	got, err := Domain(context.Background(), target, winstruct.BuiltIn(), finder{}, sweep.NewCache(),
		sweep.Options{Found: func(_ context.Context, p *introspect.Process, f finding.Finding, x sweep.Exhibit) {
			calls++
			if p == nil || p.Name != "malware.exe" || p.EPROCESS == 0 || p.Created.IsZero() || !strings.Contains(string(x.Scanned), malware) || len(x.Memory) != int(f.Size) || x.Fidelity == nil || !x.Fidelity.Exact() ||
				f.Subject.Name != p.Name || f.Subject.Parent == "" || f.Domain != "win" || f.Subject.Domain != "win" {
				t.Errorf("process %+v, finding %+v, exhibit of %d and %d bytes", p, f, len(x.Scanned), len(x.Memory))
			}
		}})
	if err != nil || calls != 1 || len(got.Findings) != 0 {
		t.Errorf("%d calls, %+v, %v", calls, got.Findings, err)
	}
	suspended := false
	target.Paused, target.Suspend = func() bool { return suspended }, func(context.Context) error { suspended = true; return nil }
	for _, action := range []verdict.Action{verdict.Report, verdict.Kill, verdict.Suspend} {
		opt := sweep.Options{Policy: verdict.Always(action)}
		want, err := sweep.Domain(context.Background(), target, winstruct.BuiltIn(), finder{}, sweep.NewCache(), opt)
		if err != nil {
			t.Fatal(err)
		}
		was := suspended
		suspended = false
		got, err := Domain(context.Background(), target, winstruct.BuiltIn(), finder{}, sweep.NewCache(), opt)
		if err != nil {
			t.Fatal(err)
		}
		if suspended != was || was != (action == verdict.Suspend) || len(got.Kills) != len(want.Kills) || len(got.Actions) != len(want.Actions) {
			t.Errorf("%s: suspended %v and %v, %+v, want %+v", action, suspended, was, got, want)
		}
		if !reflect.DeepEqual(got.Findings, want.Findings) && action != verdict.Suspend || !reflect.DeepEqual(got.Errors, want.Errors) || got.Status != want.Status {
			t.Errorf("%s: got  %+v\nwant %+v", action, got, want)
		}
		suspended = false
	}
}

// failing is a source that fails from one read on.
type failing struct {
	source.Source
	left int
	err  error
}

func (f *failing) ReadPhys(p []byte, addr uint64) error {
	if f.left--; f.left < 0 {
		return &source.AccessError{Addr: addr, Size: len(p), Err: f.err}
	}
	return f.Source.ReadPhys(p, addr)
}

func TestAGuestThatGoesAwayIsNeverClean(t *testing.T) {
	src, _ := guestOf(t, ntguest.Options{Build: "10.0.19041", Seed: 5})
	for _, left := range []int{0, 3, 100, 1000} {
		got, err := Domain(context.Background(), sweep.Target{Name: "win", Source: &failing{src, left, source.ErrGone}}, winstruct.BuiltIn(), finder{}, sweep.NewCache(), sweep.Options{Jobs: 1})
		text := got.Reason
		for _, e := range got.Errors {
			text += e.Error
		}
		if got.Status == finding.StatusScanned || got.Status == finding.StatusSkipped || !strings.Contains(text, source.ErrGone.Error()) {
			t.Errorf("gone after %d reads: status %s, reason %q, errors %v", left, got.Status, got.Reason, got.Errors)
		}
		if err != nil && !errors.Is(err, source.ErrGone) {
			t.Errorf("gone after %d reads: %v", left, err)
		}
	}
}

type goneEngine struct{}

func (goneEngine) Scan(context.Context, string, []byte) (clam.Result, error) {
	return clam.Result{}, fmt.Errorf("scan: %w", clam.ErrEngineGone)
}

func TestAnEngineThatGoesAwayEndsTheSweep(t *testing.T) {
	src, _ := guestOf(t, ntguest.Options{Build: "10.0.19041", Seed: 5})
	got, err := Domain(context.Background(), sweep.Target{Name: "win", Source: src}, winstruct.BuiltIn(), goneEngine{}, sweep.NewCache(), sweep.Options{})
	if !errors.Is(err, clam.ErrEngineGone) || got.Status != finding.StatusIncomplete || len(got.Errors) == 0 {
		t.Errorf("status %s, errors %v, %v", got.Status, got.Errors, err)
	}
}

func TestAnInterruptedSweepStops(t *testing.T) {
	src, _ := guestOf(t, ntguest.Options{Build: "10.0.19041", Seed: 5})
	ctx, cancel := context.WithCancel(context.Background())
	got, err := Domain(ctx, sweep.Target{Name: "win", Source: src}, winstruct.BuiltIn(), finder{}, sweep.NewCache(), sweep.Options{Progress: func(p sweep.Progress) {
		if p.Done < p.Total {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) || got.Status == finding.StatusScanned {
		t.Errorf("status %s, %v", got.Status, err)
	}
}
