package wire

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmav.dev/vmav/internal/clam/answer"
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/scan"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/verdict"
	"vmav.dev/vmav/internal/winstruct"
)

func TestFrame(t *testing.T) {
	want := Frame{Code: AskFound, N: WindowSize, Args: []byte("args")}
	got, err := ParseFrame(AppendFrame([]byte("before")[:0], want))
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v, error %v", got, want, err)
	}
	tooFar := AppendFrame(nil, Frame{N: WindowSize + 1})
	for what, p := range map[string][]byte{"nothing": nil, "no whole head": make([]byte, headSize-1), "too large": make([]byte, MaxFrame+1),
		"beyond the window": tooFar} {
		if f, err := ParseFrame(p); err == nil {
			t.Errorf("%s: %+v", what, f)
		}
	}
}

// lanes returns both ends of a lane with one window.
func lanes(t *testing.T) (worker, broker *Lane) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	window := make([]byte, WindowSize)
	worker, broker = NewLane(pair[0], window), NewLane(pair[1], window)
	t.Cleanup(func() { unix.Close(worker.FD) })
	return worker, broker
}

func TestLane(t *testing.T) {
	w, b := lanes(t)
	served := make(chan error, 1)
	go func() {
		for {
			q, err := b.Receive()
			if err == nil {
				err = b.Send(Frame{Code: StatusOK, N: q.N, Args: append([]byte{q.Code}, q.Args...)})
			}
			if err != nil {
				served <- err
				return
			}
		}
	}()
	a, err := w.Call(AskContent, copy(w.Window, "in the window"), []byte("args"))
	if err != nil || a.N != 13 || string(a.Args) != string(rune(AskContent))+"args" {
		t.Errorf("answer to Call: %+v, %v", a, err)
	}
	if a, err = w.Exchange(append(w.Begin(AskRead), "more"...)); err != nil || a.N != 0 || string(a.Args) != string(rune(AskRead))+"more" {
		t.Errorf("answer to Exchange: %+v, %v", a, err)
	}
	if a, err := w.Call(AskRead, 0, make([]byte, MaxFrame)); err == nil {
		t.Errorf("a question of more than a packet: %+v", a)
	}
	for _, f := range []Frame{{Args: make([]byte, MaxFrame)}, {N: WindowSize + 1}} {
		if err := w.Send(f); err == nil {
			t.Errorf("%d bytes and %d in the window were sent", len(f.Args), f.N)
		}
	}
	if err := unix.Shutdown(w.FD, unix.SHUT_RDWR); err != nil {
		t.Fatal(err)
	}
	if err := <-served; !errors.Is(err, io.EOF) {
		t.Errorf("the other end is gone: %v, want %v", err, io.EOF)
	}
	unix.Close(b.FD)
}

func TestJob(t *testing.T) {
	want := Job{Name: "win", UUID: "u", State: "running", Info: source.Info{Kind: source.KindQEMU, Name: "win"},
		Near: true, Secret: [32]byte{1, 2}, Controlled: true,
		Request: scan.Request{PIDs: []uint64{4}, Jobs: 2, MinCoverage: 0.5, Content: true, Looked: true, PageIn: &scan.PageIn{Pages: 7, Wait: time.Second},
			Focus: []scan.Focused{{ID: introspect.Identity{EPROCESS: 1 << 63, PID: 8}, Program: true, Known: []scan.ImageKey{{Base: 1, Size: 2, Section: 3}}}}}}
	text, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	var got Job
	if err := json.Unmarshal(text, &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v, error %v", got, want, err)
	}
	want.Request.PIDs = make([]uint64, WindowSize)
	if text, err := want.Encode(); err == nil {
		t.Errorf("a job of %d bytes", len(text))
	}
}

func TestGreeting(t *testing.T) {
	for _, abi := range []int{0, 7} {
		if got, err := ParseGreeting(Frame{Args: Greeting(abi)}); err != nil || got != abi {
			t.Errorf("Landlock %d: %d, %v", abi, got, err)
		}
	}
	other := Greeting(7)
	other[0]++
	for _, args := range [][]byte{nil, other, append(Greeting(7), 0)} {
		if abi, err := ParseGreeting(Frame{Args: args}); err == nil {
			t.Errorf("% x is Landlock %d", args, abi)
		}
	}
}

func TestErrors(t *testing.T) {
	for _, sentinel := range []error{source.ErrHole, source.ErrGone, source.ErrClosed, source.ErrNoRegisters, answer.ErrEngineGone, os.ErrClosed,
		winstruct.ErrNoProfile, context.Canceled} {
		err := fmt.Errorf("read it: %w", sentinel)
		got := ErrorOf(Failure(err))
		if !errors.Is(got, sentinel) || got.Error() != err.Error() {
			t.Errorf("%v came over as %v", err, got)
		}
	}
	if got := ErrorOf(Failure(context.DeadlineExceeded)); !errors.Is(got, context.Canceled) {
		t.Errorf("a deadline came over as %v", got)
	}
	// An error that ends the scan counts, whatever else it wraps.
	if got := ErrorOf(Failure(errors.Join(source.ErrHole, source.ErrGone))); !errors.Is(got, source.ErrGone) || errors.Is(got, source.ErrHole) {
		t.Errorf("two errors came over as %v", got)
	}
	if got := ErrorOf(Failure(errors.New("else"))); got == nil || got.Error() != "else" || errors.Unwrap(got) != nil {
		t.Errorf("another error came over as %v", got)
	}
	if err := ErrorOf(Frame{Code: StatusOK}); err != nil {
		t.Errorf("no error came over as %v", err)
	}
	if err := ErrorOf(Frame{Code: 200}); err == nil || err.Error() == "" {
		t.Errorf("an unknown status without a text: %v", err)
	}
	if err := StatusError(StatusHole); !errors.Is(err, source.ErrHole) || StatusError(StatusOK) != nil {
		t.Errorf("status of a hole: %v", err)
	}
}

func TestClip(t *testing.T) {
	if s := strings.Repeat("x", maxReason); Clip(s) != s {
		t.Error("a text of the largest size was cut")
	}
	if got, want := Clip(strings.Repeat("é", maxReason)), strings.Repeat("é", maxReason/2)+"…"; got != want {
		t.Errorf("cut to %d bytes, want %d", len(got), len(want))
	}
	if got := Clip("x" + strings.Repeat("é", maxReason)); strings.ContainsRune(got, '�') || len(got) > maxReason+len("…") {
		t.Errorf("cut inside a character: %d bytes", len(got))
	}
}

func TestReads(t *testing.T) {
	window := make([]byte, 8192)
	args := AppendRead(AppendRead(nil, 0x1000, 4096), 0x7ff0, 16)
	reqs, err := ParseReads(args, window, nil)
	if err != nil || len(reqs) != 2 || reqs[0].Addr != 0x1000 || len(reqs[0].P) != 4096 || reqs[1].Addr != 0x7ff0 || len(reqs[1].P) != 16 {
		t.Fatalf("%d requests, %v", len(reqs), err)
	}
	if reqs[1].P[0] = 7; window[4096] != 7 || cap(reqs[0].P) != 4096 {
		t.Error("the buffers do not lie one after the other in the window")
	}
	many := bytes.Repeat(AppendRead(nil, 0, 1), MaxReads+1)
	for what, args := range map[string][]byte{"none": nil, "a part of one": args[:readSize+1], "too many": many, "no bytes": AppendRead(nil, 0, 0),
		"more than the window": AppendRead(AppendRead(nil, 0, 8192), 0, 1), "beyond the last address": AppendRead(nil, math.MaxUint64, 2)} {
		if got, err := ParseReads(args, window, nil); err == nil {
			t.Errorf("%s: %d requests", what, len(got))
		}
	}
}

func TestLooked(t *testing.T) {
	id, key := introspect.Identity{EPROCESS: 1, PID: 2, CreateTime: 3, DTB: 4}, scan.ImageKey{Base: 5, Size: 6, Section: 7}
	for _, whole := range []bool{false, true} {
		b := AppendLooked(nil, id, key, whole)
		p, m, w, err := ParseLooked(b)
		if err != nil || len(b) != LookedSize || p != id || m != key || w != whole {
			t.Errorf("%d bytes: %+v, %+v, %v, %v", len(b), p, m, w, err)
		}
		b[LookedSize-1] = 2
		if _, _, _, err := ParseLooked(b); err == nil {
			t.Error("an image that is neither whole nor not")
		}
	}
}

func TestFoundCheck(t *testing.T) {
	good := func() Found {
		return Found{Finding: finding.Finding{Kind: finding.KindSignature, Signature: "X", SHA256: strings.Repeat("0", 64),
			Fidelity: finding.Fidelity{Form: finding.FormFile, Coverage: 1}, Subject: verdict.Subject{PID: 8}}, Process: &introspect.Process{PID: 8}}
	}
	for what, change := range map[string]func(*Found){
		"a signature":    func(*Found) {},
		"a modification": func(f *Found) { f.Finding.Kind, f.Finding.Signature = finding.KindModified, finding.ModifiedCode },
		"memory":         func(f *Found) { f.Finding.Fidelity.Form = finding.FormMemory },
		"in the kernel":  func(f *Found) { f.Finding.Subject, f.Process = verdict.Subject{Kernel: true}, nil },
	} {
		f := good()
		if change(&f); f.Check() != nil {
			t.Errorf("%s is refused: %v", what, f.Check())
		}
	}
	for what, change := range map[string]func(*Found){
		"kind":                   func(f *Found) { f.Finding.Kind = "x" },
		"modification":           func(f *Found) { f.Finding.Kind = finding.KindModified },
		"hash":                   func(f *Found) { f.Finding.SHA256 = f.Finding.SHA256[1:] },
		"form":                   func(f *Found) { f.Finding.Fidelity.Form = "" },
		"coverage above 1":       func(f *Found) { f.Finding.Fidelity.Coverage = 1.5 },
		"coverage that is none":  func(f *Found) { f.Finding.Fidelity.Coverage = math.NaN() },
		"process of another PID": func(f *Found) { f.Process.PID = 9 },
		"process of the kernel":  func(f *Found) { f.Finding.Subject.Kernel = true },
		"no process":             func(f *Found) { f.Process = nil },
	} {
		f := good()
		if change(&f); f.Check() == nil {
			t.Errorf("%s: a finding that no scan reports is not refused", what)
		}
	}
}

func TestResultCheck(t *testing.T) {
	for _, status := range []string{finding.StatusScanned, finding.StatusIncomplete, finding.StatusSkipped, finding.StatusFailed} {
		r := Result{Scan: finding.Scan{Status: status, Processes: 3, Timing: finding.Timing{Total: 1}}}
		if err := r.Check(); err != nil {
			t.Errorf("%s is refused: %v", status, err)
		}
	}
	for what, change := range map[string]func(*finding.Scan){
		"status":         func(d *finding.Scan) { d.Status = "" },
		"negative count": func(d *finding.Scan) { d.PageIns = -1 },
		"large count":    func(d *finding.Scan) { d.Images = maxCount + 1 },
		"negative time":  func(d *finding.Scan) { d.Timing.Scan = -1 },
		"no time":        func(d *finding.Scan) { d.Timing.Locate = math.NaN() },
		"finding":        func(d *finding.Scan) { d.Findings = make([]finding.Finding, 1) },
		"error":          func(d *finding.Scan) { d.Errors = make([]finding.Unread, 1) },
		"kill":           func(d *finding.Scan) { d.Kills = make([]*finding.Kill, 1) },
		"action":         func(d *finding.Scan) { d.Actions = make([]*finding.Act, 1) },
	} {
		r := Result{Scan: finding.Scan{Status: finding.StatusScanned}}
		if change(&r.Scan); r.Check() == nil {
			t.Errorf("%s: a result that no scan has is not refused", what)
		}
	}
}
