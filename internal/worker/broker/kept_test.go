package broker

import (
	"context"
	"encoding/json"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/ntguest"
	"vmav.dev/vmav/internal/scan"
	"vmav.dev/vmav/internal/scan/scantest"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/winstruct"
	"vmav.dev/vmav/internal/worker/wire"
)

// Scan after scan has one process, each with bounds and a result of its own; a process
// that is killed costs the scan under way, and the next one has another.
func TestAKeptWorkerDoesJobAfterJob(t *testing.T) {
	src, _ := scantest.Guest(t, ntguest.Options{Build: "10.0.19041", Seed: 3})
	asked := struct{ source.Source }{src}
	focus := scantest.Focus(t, src)
	for name, src := range map[string]source.Source{"mapped": src, "asked": asked} {
		r := new(Runner)
		k := r.Keep(scantest.Means(scantest.Finder{}))
		do := func(h *scantest.Heard) finding.Scan {
			t.Helper()
			d, err := h.Scan(context.Background(), k, scan.Target{Name: "win", Source: src}, scan.Request{Focus: []scan.Focused{focus}, Looked: true})
			if err != nil {
				t.Fatal(err)
			}
			return d
		}
		only := func() *child {
			t.Helper()
			if len(r.pool.resting) != 1 {
				t.Fatalf("%s: %d workers wait", name, len(r.pool.resting))
			}
			return r.pool.resting[0]
		}
		var first *child
		for i := range 3 {
			var seen atomic.Int32
			d := do(&scantest.Heard{OnLooked: func(p introspect.Identity) {
				if seen.Add(1); p != focus.ID {
					t.Errorf("%s: an image of %+v was seen", name, p)
				}
			}})
			if d.Status != finding.StatusScanned || d.Processes != 1 || len(d.Findings) != 1 || d.Findings[0].Subject.Parent == "" ||
				int(seen.Load()) != d.Images {
				t.Fatalf("%s, %d: %d images seen, %+v", name, i, seen.Load(), d)
			}
			if p := only(); first == nil {
				first = p
			} else if p != first {
				t.Errorf("%s, %d: another process", name, i)
			}
		}
		var once sync.Once
		d := do(&scantest.Heard{OnProgress: func(scan.Progress) { once.Do(func() { scantest.KillChild(t) }) }})
		if d.Status != finding.StatusIncomplete || len(d.Errors) != 1 || d.Reason == "" || !strings.Contains(d.Errors[0].Error, "SIGKILL") {
			t.Errorf("%s: of the killed one: %+v", name, d)
		}
		if d := do(new(scantest.Heard)); d.Status != finding.StatusScanned || len(d.Findings) != 1 || only() == first {
			t.Errorf("%s: behind the killed one: %+v", name, d)
		}
		k.Close()
		if len(r.pool.resting) != 0 {
			t.Errorf("%s: a worker is left", name)
		}
	}
}

// A worker that starts while nobody can tell the vCPUs' registers finds the kernel where the
// broker knows it to be.
func TestAWorkerIsToldWhereTheKernelIs(t *testing.T) {
	src, _ := scantest.Guest(t, ntguest.Options{Build: "10.0.19041", Seed: 3})
	g, err := introspect.Open(context.Background(), src, winstruct.BuiltIn())
	if err != nil {
		t.Fatal(err)
	}
	req := scan.Request{Focus: []scan.Focused{scantest.Focus(t, src)}}
	for known, want := range map[bool]string{true: finding.StatusScanned, false: finding.StatusFailed} {
		if req.At = (introspect.Place{}); known {
			req.At = g.Kernel().Place()
		}
		k := new(Runner).Keep(scantest.Means(scantest.Finder{}))
		d, err := scantest.Scan(context.Background(), k, scan.Target{Name: "win", Source: unasked{src}}, req)
		if err != nil || d.Status != want {
			t.Errorf("known %v: %s, %q, %v", known, d.Status, d.Reason, err)
		}
		k.Close()
	}
}

// unasked is a guest whose vCPUs nobody can be asked about.
type unasked struct{ source.Source }

func (unasked) Registers(context.Context) ([]source.Registers, error) { return nil, os.ErrClosed }

// A worker that waits for work ends by itself.
func TestAKeptWorkerRests(t *testing.T) {
	src, _ := scantest.Guest(t, ntguest.Options{Build: "10.0.19041", Seed: 3})
	r := &Runner{Rest: time.Millisecond}
	k := r.Keep(scantest.Means(scantest.Finder{}))
	defer k.Close()
	if _, err := scantest.Scan(context.Background(), k, scan.Target{Name: "win", Source: src},
		scan.Request{Focus: []scan.Focused{scantest.Focus(t, src)}}); err != nil {
		t.Fatal(err)
	}
	for range 3000 {
		r.pool.mu.Lock()
		n := len(r.pool.living) + len(r.pool.resting)
		r.pool.mu.Unlock()
		if n == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("it waits on")
}

// Who kills its workers again and again gets new ones ever more slowly.
func TestWorkersThatDieAreStartedMoreSlowly(t *testing.T) {
	for n, want := range []time.Duration{0, 0, firstDelay, 2 * firstDelay, 4 * firstDelay} {
		if got := delay(n); got != want {
			t.Errorf("%d deaths: %v, want %v", n, got, want)
		}
	}
	if got := delay(1 << 30); got != lastDelay {
		t.Errorf("many deaths: %v", got)
	}
	k := &Kept{deaths: 50, last: time.Now().Add(-2 * forgetAfter)}
	if k.died(); k.deaths != 1 {
		t.Errorf("%d deaths are remembered", k.deaths)
	}
}

// A result is the last thing of a job; a question besides it, and one of no job, is nothing
// that a worker of ours has.
func TestAResultIsTheLastOfAJob(t *testing.T) {
	done, err := json.Marshal(&wire.Result{Scan: finding.Scan{Status: finding.StatusScanned}})
	if err != nil {
		t.Fatal(err)
	}
	for open, want := range map[int]bool{0: true, 1: false} {
		m := scantest.Means(scantest.Silent{})
		s := newJob(scan.Target{Name: "x", Source: zeros()}, m, m.Memory.For(context.Background(), nil), scan.Request{}, new(scantest.Heard))
		c := &child{job: s, open: open}
		v := newLaneServer(make([]byte, wire.WindowSize))
		copy(v.window, done)
		_, err := c.answer(v, wire.Frame{Code: wire.AskDone, N: len(done)})
		if (err == nil) != want || s.done != want {
			t.Errorf("with %d other questions: %v, done %v", open, err, s.done)
		}
		if _, err := c.answer(v, wire.Frame{Code: wire.AskRanges}); want && err == nil {
			t.Error("a question of no job is answered")
		}
	}
}
