package worker

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
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/sweep"
	"vmav.dev/vmav/internal/winstruct"
)

// focusOn finds the guest's malware, as a sweep can be focused on it.
func focusOn(t *testing.T, src source.Source) sweep.Focused {
	t.Helper()
	g, err := introspect.Open(context.Background(), src, winstruct.BuiltIn())
	if err != nil {
		t.Fatal(err)
	}
	procs, _, err := g.Processes(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for i := range procs {
		if p := &procs[i]; p.Name == "malware.exe" {
			return sweep.Focused{ID: p.Identity(), Parent: sweep.Parent(p, procs)}
		}
	}
	t.Fatal("no malware in the guest")
	return sweep.Focused{}
}

// Sweep after sweep has one process, each with bounds and a result of its own; a process
// that is killed costs the sweep under way, and the next one has another.
func TestAKeptWorkerDoesJobAfterJob(t *testing.T) {
	src, _ := guestOf(t, ntguest.Options{Build: "10.0.19041", Seed: 3})
	asked := struct{ source.Source }{src}
	focus := focusOn(t, src)
	for name, src := range map[string]source.Source{"mapped": src, "asked": asked} {
		r := new(Runner)
		k := r.Keep()
		do := func(opt sweep.Options) finding.Scan {
			t.Helper()
			opt.Focus = []sweep.Focused{focus}
			d, err := k.Domain(context.Background(), sweep.Target{Name: "win", Source: src}, winstruct.BuiltIn(), finder{}, sweep.NewCache(), opt)
			if err != nil {
				t.Fatal(err)
			}
			return d
		}
		only := func() *process {
			t.Helper()
			if len(r.pool.resting) != 1 {
				t.Fatalf("%s: %d workers wait", name, len(r.pool.resting))
			}
			return r.pool.resting[0]
		}
		var first *process
		for i := range 3 {
			var seen atomic.Int32
			d := do(sweep.Options{Seen: func(p introspect.Identity, _ sweep.ImageKey, _ bool) {
				if seen.Add(1); p != focus.ID {
					t.Errorf("%s: an image of %+v was seen", name, p)
				}
			}})
			if d.Status != finding.StatusScanned || d.Processes != 1 || len(d.Findings) != 1 || d.Findings[0].Subject.Parent == "" || int(seen.Load()) != d.Images {
				t.Fatalf("%s, %d: %d images seen, %+v", name, i, seen.Load(), d)
			}
			if p := only(); first == nil {
				first = p
			} else if p != first {
				t.Errorf("%s, %d: another process", name, i)
			}
		}
		var once sync.Once
		d := do(sweep.Options{Progress: func(sweep.Progress) { once.Do(func() { killChild(t) }) }})
		if d.Status != finding.StatusIncomplete || len(d.Errors) != 1 || d.Reason == "" || !strings.Contains(d.Errors[0].Error, "SIGKILL") {
			t.Errorf("%s: of the killed one: %+v", name, d)
		}
		if d := do(sweep.Options{}); d.Status != finding.StatusScanned || len(d.Findings) != 1 || only() == first {
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
	src, _ := guestOf(t, ntguest.Options{Build: "10.0.19041", Seed: 3})
	g, err := introspect.Open(context.Background(), src, winstruct.BuiltIn())
	if err != nil {
		t.Fatal(err)
	}
	opt := sweep.Options{Focus: []sweep.Focused{focusOn(t, src)}}
	for known, want := range map[bool]string{true: finding.StatusScanned, false: finding.StatusFailed} {
		if opt.Open = nil; known {
			opt.Open = func(context.Context) (*introspect.Guest, error) { return g, nil }
		}
		k := new(Runner).Keep()
		d, err := k.Domain(context.Background(), sweep.Target{Name: "win", Source: unasked{src}}, winstruct.BuiltIn(), finder{}, sweep.NewCache(), opt)
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
	src, _ := guestOf(t, ntguest.Options{Build: "10.0.19041", Seed: 3})
	r := &Runner{Rest: time.Millisecond}
	k := r.Keep()
	defer k.Close()
	if _, err := k.Domain(context.Background(), sweep.Target{Name: "win", Source: src}, winstruct.BuiltIn(), finder{}, sweep.NewCache(), sweep.Options{Focus: []sweep.Focused{focusOn(t, src)}}); err != nil {
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

// A result is the last thing of a job; a question beside it, and one of no job, is nothing
// that a worker of ours has.
func TestAResultIsTheLastOfAJob(t *testing.T) {
	done, err := json.Marshal(&result{Scan: finding.Scan{Status: finding.StatusScanned}})
	if err != nil {
		t.Fatal(err)
	}
	for open, want := range map[int]bool{0: true, 1: false} {
		s := newSession(sweep.Target{Name: "x", Source: zeros{}}, winstruct.BuiltIn(), silent{}, sweep.NewCache().Session(context.Background(), nil), sweep.Options{})
		p := &process{task: &task{s, nil}, open: open}
		v := newServed(make([]byte, windowSize))
		copy(v.window, done)
		_, err := p.answer(v, frame{code: askDone, n: len(done)})
		if (err == nil) != want || s.done != want {
			t.Errorf("with %d other questions: %v, done %v", open, err, s.done)
		}
		if _, err := p.answer(v, frame{code: askRanges}); want && err == nil {
			t.Error("a question of no job is answered")
		}
	}
}
