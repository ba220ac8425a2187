package notify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"vmav.dev/vmav/internal/config"
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/verdict"
)

// hostile is a name that a guest could give its process.
const hostile = "ma\x1b[31mlware\n.exe\"\\\xff"

func found(rule string, notify bool) finding.Finding {
	return finding.Finding{Kind: finding.KindSignature, Domain: "win10", PID: 812, Process: hostile, Image: `C:\x.exe`, Signature: "Win.Test",
		SHA256:  strings.Repeat("a", 64),
		Subject: verdict.Subject{PID: 812, Name: hostile}, Verdict: verdict.Verdict{Action: verdict.Kill, Rule: rule, Reason: "why", Notify: notify},
		Action: verdict.Kill, Outcome: finding.Outcome{Code: "killed"}}
}

func scan(findings ...finding.Finding) *finding.Scan {
	return &finding.Scan{Name: "win10", UUID: "u-u", Status: finding.StatusScanned, Images: 12, Findings: findings, Errors: []finding.Unread{}}
}

// recorder is a sink that fails or blocks as it is told.
type recorder struct {
	mu     sync.Mutex
	got    []*Event
	all    bool
	err    error
	block  chan struct{} // unless nil, closed when it may go on
	inside chan struct{}
	closed bool
}

func (r *recorder) name() string { return "recorder" }
func (r *recorder) log() bool    { return r.all }
func (r *recorder) close() error { r.mu.Lock(); defer r.mu.Unlock(); r.closed = true; return nil }
func (r *recorder) send(ctx context.Context, e *Event) error {
	if r.block != nil {
		select {
		case r.inside <- struct{}{}:
		default:
		}
		select {
		case <-r.block:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = append(r.got, e)
	return r.err
}

func notifier(sinks ...sink) *Notifier {
	n := &Notifier{opt: Options{Trigger: "cli"}, host: "h"}
	for _, s := range sinks {
		n.outlets = append(n.outlets, newOutlet(s, nil))
	}
	return n
}

// Logs get everything, the others what the policy notifies of.
func TestWhoIsTold(t *testing.T) {
	log, told := &recorder{all: true}, &recorder{}
	n := notifier(log, told)
	n.Domain(scan(found("loud", true), found("quiet", false)), false)
	if err := n.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	if len(log.got) != 3 || log.got[0].Finding.Verdict.Rule != "loud" || log.got[2].Sweep == nil || log.got[2].Sweep.Findings != 2 || !log.closed {
		t.Errorf("the log got %+v", log.got)
	}
	if len(told.got) != 1 || told.got[0].Finding.Verdict.Rule != "loud" || told.got[0].Trigger != "cli" || told.got[0].ID == "" || told.got[0].UUID != "u-u" {
		t.Errorf("the other got %+v", told.got)
	}
	n.Domain(scan(found("late", true)), false)
	if err := n.Close(context.Background()); err == nil || !strings.Contains(err.Error(), "were not delivered") {
		t.Errorf("after the end: %v", err)
	}
}

// One that stands still costs the others nothing, and what it misses is counted.
func TestAQueueIsBounded(t *testing.T) {
	stuck, log := &recorder{block: make(chan struct{}), inside: make(chan struct{}, 1)}, &recorder{all: true}
	n := notifier(stuck, log)
	f := found("loud", true)
	n.Finding("win10", "", &f, false)
	<-stuck.inside // the first is under way, so that the queue has its whole length
	for range queueLength + 10 {
		n.Finding("win10", "", &f, false)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	err := n.Close(ctx)
	if want := fmt.Sprintf("%d events were not delivered", queueLength+11); err == nil || !strings.Contains(err.Error(), want) ||
		!strings.Contains(err.Error(), errFull.Error()) {
		t.Errorf("%v, want %s", err, want)
	}
	if len(stuck.got) != 0 || len(log.got) == 0 {
		t.Errorf("%d events were delivered, and %d where nothing stands still", len(stuck.got), len(log.got))
	}
}

func TestFailuresAreTold(t *testing.T) {
	var mu sync.Mutex
	var told []error
	o := newOutlet(&recorder{all: true, err: errors.New("no")}, func(err error) { mu.Lock(); told = append(told, err); mu.Unlock() })
	n := &Notifier{outlets: []*outlet{o}}
	n.Domain(scan(), false)
	if err := n.Close(context.Background()); err == nil || err.Error() != "recorder: 1 events were not delivered: no" {
		t.Errorf("%v", err)
	}
	if len(told) != 1 || told[0].Error() != "recorder: no" {
		t.Errorf("%v", told)
	}
}

func TestLevels(t *testing.T) {
	with := func(f func(*finding.Finding)) *Event { x := found("r", true); f(&x); return &Event{Finding: &x} }
	for _, tt := range []struct {
		name string
		e    *Event
		want level
	}{
		{"killed", with(func(*finding.Finding) {}), levelWarning},
		{"not killed", with(func(f *finding.Finding) { f.Outcome = finding.Outcome{Code: "refused", Reason: "it has exited"} }), levelError},
		{"planned", with(func(f *finding.Finding) { f.Outcome = finding.Outcome{Code: "planned"} }), levelWarning},
		{"reported", with(func(f *finding.Finding) {
			f.Verdict.Action = verdict.Report
			f.Outcome = finding.Outcome{Code: "reported"}
		}), levelWarning},
		{"allowed", with(func(f *finding.Finding) {
			f.Verdict = verdict.Verdict{Action: verdict.Report, Rule: verdict.RuleAllow}
		}), levelInfo},
		{"a sweep", &Event{Sweep: &Sweep{Status: finding.StatusScanned}}, levelInfo},
		{"an incomplete one", &Event{Sweep: &Sweep{Status: finding.StatusIncomplete}}, levelWarning},
	} {
		if got := tt.e.level(); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
}

// A guest cannot write lines of its own into a log, or flood it.
func TestTextOfAGuestIsEscapedAndBounded(t *testing.T) {
	f := found("r", true)
	f.Image = strings.Repeat("ä", 40000)
	e := &Event{Type: TypeFinding, Domain: "win10", Finding: &f}
	for k, v := range e.fields() {
		if strings.ContainsAny(v, "\n\x1b") || !utf8.ValidString(v) || len(v) > maxText+8 {
			t.Errorf("field %s: %.80q of %d bytes", k, v, len(v))
		}
	}
	if s := e.text(); strings.ContainsAny(s, "\n\x1b") || !utf8.ValidString(s) || len(s) > maxText+8 {
		t.Errorf("%.80q of %d bytes", s, len(s))
	}
}

func TestOpenNamesWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	secret := func(text string, mode os.FileMode) string {
		file := filepath.Join(dir, fmt.Sprintf("key-%d-%o", len(text), mode))
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
		return file
	}
	hook := func(file string) config.Report {
		return config.Report{Webhook: config.Webhook{URL: "https://example.org/", SecretFile: file}}
	}
	for _, tt := range []struct {
		c    config.Report
		want string
	}{
		{config.Report{Metrics: dir + "/none"}, "metrics: stat"},
		{config.Report{Metrics: secret("x", 0o600)}, "is no directory"},
		{hook(dir + "/none"), "no such file"},
		{hook(secret("short", 0o600)), "it has 5 bytes"},
		{hook(secret(strings.Repeat("k", 20), 0o644)), "everybody may read it"},
	} {
		n, err := Open(tt.c, Options{})
		if err == nil || n != nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v, want %s", tt.c, err, tt.want)
		}
	}
	if n, err := Open(hook(secret(strings.Repeat("k", 20)+"\n", 0o640)), Options{}); err != nil || len(n.outlets) != 1 {
		t.Errorf("%v", err)
	}
}

func TestEventJSON(t *testing.T) {
	f := found("r", true)
	e := Event{ID: "i", Type: TypeFinding, Finding: &f}
	text, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	var back Event
	if err := json.Unmarshal(text, &back); err != nil || back.Finding.Signature != f.Signature || back.Finding.Verdict != f.Verdict {
		t.Errorf("%v: %+v", err, back)
	}
}

func TestAFindingInTheKernelNamesNoProcess(t *testing.T) {
	f := found("drivers", false)
	f.PID, f.Process, f.Image, f.Subject = 0, "", `\Driver\rootkit.sys`, verdict.Subject{Kernel: true, Session: -1}
	e := Event{Type: TypeFinding, Domain: "win10", Finding: &f}
	if got, want := e.text(), `win10: kernel: \Driver\rootkit.sys: Win.Test FOUND; kill by rule drivers: killed`; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
