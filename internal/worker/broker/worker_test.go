package broker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"vmav.dev/vmav/internal/clam/answer"
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/ntguest"
	"vmav.dev/vmav/internal/respond"
	"vmav.dev/vmav/internal/scan"
	"vmav.dev/vmav/internal/scan/scantest"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/verdict"
	"vmav.dev/vmav/internal/winstruct"
	"vmav.dev/vmav/internal/winstruct/winstructtest"
	"vmav.dev/vmav/internal/worker/inside"
)

// TestMain is a worker where it is started as one: its own program is what a Runner
// starts.
func TestMain(m *testing.M) {
	if inside.IsWorker(os.Args) {
		status, err := inside.Main(os.Args)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(status)
	}
	os.Exit(m.Run())
}

// look scans a guest in a worker.
func look(ctx context.Context, t scan.Target, m scan.Means, h *scantest.Heard) (finding.Scan, error) {
	return h.Scan(ctx, new(Runner).Scanner(m), t, scan.Request{MinCoverage: scan.DefaultMinCoverage, Content: true})
}

// The result of a scan in a worker is that of one in this process, whichever way the
// profile is found.
func TestAWorkerFindsWhatThisProcessFinds(t *testing.T) {
	e := scantest.Engine(t)
	src, truth := scantest.Guest(t, ntguest.Options{Build: "10.0.19041", Seed: 3})
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
		target := scan.Target{Name: "win", UUID: "u", State: "image", Source: source.NewCache(src, 64)}
		if name == "asked" {
			target.Source = asked
		}
		m := scan.Means{Profiles: profiles, Engine: e, Memory: scan.NewCache()}
		want, err := scantest.Scan(context.Background(), scan.InProcess{Means: m}, target, scan.Request{MinCoverage: scan.DefaultMinCoverage})
		if err != nil {
			t.Fatal(err)
		}
		var last scan.Progress
		m.Memory = scan.NewCache()
		got, err := look(context.Background(), target, m, &scantest.Heard{OnProgress: func(p scan.Progress) {
			if p.Done > last.Done { // they come in any order
				last = p
			}
		}})
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
	src, _ := scantest.Guest(t, ntguest.Options{Build: "6.1.7601-x86", Seed: 3})
	got, err := look(context.Background(), scan.Target{Name: "win", Source: src}, scantest.Means(scantest.Finder{}), new(scantest.Heard))
	if err != nil || got.Status != finding.StatusScanned || got.Profile != finding.ProfileInferred || len(got.Findings) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
}

// What the broker's cache knows is not scanned again, and counted so.
func TestTheCacheIsTheBrokers(t *testing.T) {
	src, _ := scantest.Guest(t, ntguest.Options{Build: "10.0.19041", Seed: 3})
	m := scantest.Means(scantest.Finder{})
	var files []int
	for range 2 {
		got, err := look(context.Background(), scan.Target{Name: "win", Source: src}, m, new(scantest.Heard))
		if err != nil || len(got.Findings) != 1 {
			t.Fatalf("%+v, %v", got, err)
		}
		if files = append(files, got.Files); len(files) == 2 && got.Unchanged < got.Images-1 {
			t.Errorf("%d of %d images are recognised", got.Unchanged, got.Images)
		}
	}
	if files[0] == 0 || files[1] != 0 {
		t.Errorf("distinct files of two scans: %v, want none in the second", files)
	}
}

// Findings come to the broker with their process and what they were found in, and what is
// decided about them is the same as of a scan in this process.
func TestFindingsComeWithTheirFacts(t *testing.T) {
	src, _ := scantest.Guest(t, ntguest.Options{Build: "10.0.19041", Seed: 3})
	target := scan.Target{Name: "win", Source: src, State: "running"}
	calls := 0
	h := &scantest.Heard{OnFound: func(x scan.Found) {
		calls++
		p, f, c := x.Process, x.Finding, x.Content
		if p == nil || p.Name != "malware.exe" || p.EPROCESS == 0 || p.Created.IsZero() || !strings.Contains(string(c.Scanned), scantest.Malware) ||
			len(c.Memory) != int(f.Size) || c.Fidelity == nil || !c.Fidelity.Exact() ||
			f.Subject.Name != p.Name || f.Subject.Parent == "" || f.Domain != "win" || f.Subject.Domain != "win" {
			t.Errorf("process %+v, finding %+v, content of %d and %d bytes", p, f, len(c.Scanned), len(c.Memory))
		}
	}}
	if got, err := look(context.Background(), target, scantest.Means(scantest.Finder{}), h); err != nil || calls != 1 {
		t.Errorf("%d calls, %+v, %v", calls, got, err)
	}
	suspended := &domain{}
	target.Domain = suspended
	for _, action := range []verdict.Action{verdict.Report, verdict.Kill, verdict.Suspend} {
		respondBy := func(s scan.Scanner) finding.Scan {
			suspended.paused = false
			d, err := respond.Scan(context.Background(), s, target, scan.Request{},
				respond.Options{Policy: verdict.Always(action), Profiles: winstruct.BuiltIn()})
			if err != nil {
				t.Fatal(err)
			}
			if suspended.paused != (action == verdict.Suspend) {
				t.Errorf("%s: suspended: %v", action, suspended.paused)
			}
			for _, k := range d.Kills {
				k.Requested = time.Time{}
			}
			for _, a := range d.Actions {
				a.Requested, a.Applied = time.Time{}, nil
			}
			d.Timing, d.Unchanged = finding.Timing{}, 0 // two jobs may rebuild the same at once
			return d
		}
		want := respondBy(scan.InProcess{Means: scantest.Means(scantest.Finder{})})
		if got := respondBy(new(Runner).Scanner(scantest.Means(scantest.Finder{}))); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got  %+v\nwant %+v", action, got, want)
		}
	}
}

// domain can be suspended.
type domain struct{ paused bool }

func (d *domain) Paused() bool                  { return d.paused }
func (d *domain) Suspend(context.Context) error { d.paused = true; return nil }

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
	src, _ := scantest.Guest(t, ntguest.Options{Build: "10.0.19041", Seed: 5})
	for _, left := range []int{0, 3, 100, 1000} {
		got, err := scantest.Scan(context.Background(), new(Runner).Scanner(scantest.Means(scantest.Finder{})),
			scan.Target{Name: "win", Source: &failing{src, left, source.ErrGone}}, scan.Request{Jobs: 1})
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

func (goneEngine) Scan(context.Context, string, []byte) (answer.Result, error) {
	return answer.Result{}, fmt.Errorf("scan: %w", answer.ErrEngineGone)
}

func TestAnEngineThatGoesAwayEndsTheScan(t *testing.T) {
	src, _ := scantest.Guest(t, ntguest.Options{Build: "10.0.19041", Seed: 5})
	got, err := look(context.Background(), scan.Target{Name: "win", Source: src}, scantest.Means(goneEngine{}), new(scantest.Heard))
	if !errors.Is(err, answer.ErrEngineGone) || got.Status != finding.StatusIncomplete || len(got.Errors) == 0 {
		t.Errorf("status %s, errors %v, %v", got.Status, got.Errors, err)
	}
}

func TestAnInterruptedScanStops(t *testing.T) {
	src, _ := scantest.Guest(t, ntguest.Options{Build: "10.0.19041", Seed: 5})
	ctx, cancel := context.WithCancel(context.Background())
	got, err := look(ctx, scan.Target{Name: "win", Source: src}, scantest.Means(scantest.Finder{}), &scantest.Heard{OnProgress: func(p scan.Progress) {
		if p.Done < p.Total {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) || got.Status == finding.StatusScanned {
		t.Errorf("status %s, %v", got.Status, err)
	}
}
