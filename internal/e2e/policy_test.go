package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"vmav.dev/vmav/internal/domain"
	"vmav.dev/vmav/internal/notify"
)

// write puts a file that not everybody may write to into a directory.
func write(t *testing.T, path, text string, mode os.FileMode) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// A policy decides on what is found in a running domain; the domain is suspended, and
// everybody whom the settings name is told.
func TestAPolicySuspendsAndTells(t *testing.T) {
	g := start(t, "10.0.19041")
	dir := t.TempDir()
	var mu sync.Mutex
	var posted []notify.Event
	var signed []string
	busy := true // the first answer
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		if busy {
			busy = false
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		var e notify.Event
		if err = json.Unmarshal(body, &e); err != nil {
			t.Errorf("%v: %s", err, body)
		}
		posted, signed = append(posted, e), append(signed, r.Header.Get(notify.SignatureHeader))
	}))
	defer server.Close()
	policy := write(t, filepath.Join(dir, "policy.toml"), `
[[rule]]
name = "unpacked in memory"
form = "memory"
action = "report"
notify = false

[[rule]]
name = "from a user's directory"
signature = "Vmav.Test.*"
path = '\Users\*\AppData\**'
parent = "explorer.exe"
session = "user"
domain = "vmav-*"
profile = "exact"
action = "suspend"
evidence = true
`, 0o644)
	script := write(t, filepath.Join(dir, "told.sh"), "#!/bin/sh\ncat >>\"$1\"\n", 0o755)
	settings := write(t, filepath.Join(dir, "vmav.toml"), fmt.Sprintf(`
uri = %q
policy = %q
[clamd]
databases = [%q]
[report]
journal = false
notify = [%q, %q]
metrics = %q
[report.webhook]
url = %q
secret_file = %q
`, uri, policy, database(t), script, filepath.Join(dir, "told"), dir, server.URL,
		write(t, filepath.Join(dir, "key"), "0123456789abcdef", 0o600)), 0o644)
	type result struct {
		Domains []struct {
			Findings []struct {
				Process, Action, Outcome string
				Verdict                  struct {
					Rule             string
					Evidence, Notify bool
				}
			}
			Actions []struct{ Action, Outcome string }
			Errors  []any
		}
	}
	scan := func(more ...string) (out result) {
		t.Helper()
		text, errs, status := vmav(t, append([]string{"scan", "--config", settings, g.name, "--format", "json"}, more...)...)
		if err := json.Unmarshal([]byte(text), &out); err != nil || status != 1 || len(out.Domains) != 1 || len(out.Domains[0].Findings) != 2 || len(out.Domains[0].Actions) != 1 {
			t.Fatalf("status %d, %v: %s %s", status, err, errs, text)
		}
		for _, f := range out.Domains[0].Findings {
			want := [3]string{"from a user's directory", "suspend", out.Domains[0].Actions[0].Outcome}
			if f.Process == "packed.exe" {
				want = [3]string{"unpacked in memory", "report", "reported"}
			}
			if got := [3]string{f.Verdict.Rule, f.Action, f.Outcome}; got != want || f.Verdict.Evidence != (f.Process == "malware.exe") {
				t.Errorf("%+v, want %v", f, want)
			}
		}
		return out
	}
	state := func() string { t.Helper(); return strings.TrimSpace(virsh(t, "domstate", g.name)) }
	if out := scan("--dry-run"); out.Domains[0].Actions[0].Outcome != "planned" || state() != "running" {
		t.Errorf("a dry run: %+v, and the domain is %s", out, state())
	}
	if out := scan(); out.Domains[0].Actions[0].Outcome != "suspended" || state() != "paused" {
		t.Errorf("%+v, and the domain is %s", out, state())
	}
	virsh(t, "resume", g.name)
	// Another run of the domain than the one that was looked at is not suspended.
	h, err := domain.Connect(uri)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	d, err := h.Find(g.name)
	if err != nil {
		t.Fatal(err)
	}
	d.ID++
	if err := h.Suspend(context.Background(), d); !errors.Is(err, domain.ErrNotRunning) || state() != "running" {
		t.Errorf("%v, and the domain is %s", err, state())
	}

	mu.Lock()
	defer mu.Unlock()
	if len(posted) != 2 || !posted[0].DryRun || posted[1].DryRun || posted[1].Finding.Process != "malware.exe" || posted[1].Finding.Code != "suspended" || posted[1].Domain != g.name || posted[1].Trigger != "cli" {
		t.Errorf("posted %+v", posted)
	}
	if slices.ContainsFunc(signed, func(s string) bool { return !strings.HasPrefix(s, "t=") || !strings.Contains(s, ",v1=") }) {
		t.Errorf("signed %q", signed)
	}
	told, err := os.ReadFile(filepath.Join(dir, "told"))
	if err != nil || strings.Count(string(told), `"signature":"Vmav.Test.Malware"`) != 2 || strings.Contains(string(told), "packed.exe") {
		t.Errorf("%v: the command got %s", err, told)
	}
	prom, err := os.ReadFile(filepath.Join(dir, notify.MetricsFile))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`vmav_actions_total{action="suspend",outcome="suspended"} 1`, `vmav_actions_total{action="suspend",outcome="planned"} 1`,
		fmt.Sprintf(`vmav_findings_total{domain=%q,verdict="report"} 2`, g.name), fmt.Sprintf("vmav_sweep_complete{domain=%q} 1", g.name)} {
		if !strings.Contains(string(prom), want) {
			t.Errorf("no %s in\n%s", want, prom)
		}
	}
}

// A hold by policy keeps the process from running for its time, and no other; without
// anybody to keep it, it is refused.
func TestLabAPolicyHolds(t *testing.T) {
	lab(t)
	k := newKiller(t, start(t, "10.0.19041"))
	k.say("pause", "CHURN 0")
	db := database(t)
	policy := write(t, filepath.Join(t.TempDir(), "policy.toml"), `
[[rule]]
name = "hold it"
form = "file"
action = "hold"
`, 0o644)
	p := k.named("malware.exe")
	type result struct {
		Domains []struct {
			Actions []struct{ Action, Outcome, Reason string }
		}
	}
	read := func(text string) (out result) {
		t.Helper()
		if err := json.Unmarshal([]byte(text), &out); err != nil || len(out.Domains) != 1 || len(out.Domains[0].Actions) != 1 || out.Domains[0].Actions[0].Action != "hold" {
			t.Fatalf("%v: %s", err, text)
		}
		return out
	}
	args := []string{"scan", "-c", uri, k.name, "--database", db, "--policy", policy, "--timeout", "2m", "--format", "json"}
	text, errs, status := vmav(t, args...)
	if a := read(text).Domains[0].Actions[0]; status != 2 || a.Outcome != "refused" || !strings.Contains(a.Reason, "--hold-for") {
		t.Errorf("nobody holds: status %d, %+v, %s", status, a, errs)
	}
	free := k.find(k.start("burn.exe"))
	moves := func(pid uint64) func() bool {
		a := k.number("progress", pid)
		return func() bool { return k.number("progress", pid) != a }
	}
	waitFor(t, "progress before the hold", moves(p.PID))
	done := make(chan struct{})
	go func() {
		defer close(done)
		text, errs, status = vmav(t, append(args, "--hold-for", "90s")...)
	}()
	held := func() bool { // no progress between two heartbeats of the guest
		a := k.number("progress", p.PID)
		for range 3 {
			k.expect("HB ")
		}
		return k.number("progress", p.PID) == a
	}
	waitFor(t, "the hold", held)
	waitFor(t, "progress of another process", moves(free.PID))
	select {
	case <-done:
		t.Errorf("vmav has ended with the process held: %d, %s %s", status, errs, text)
	case <-time.After(time.Second):
	}
	<-done
	if a := read(text).Domains[0].Actions[0]; status != 1 || a.Outcome != "held" || !strings.Contains(errs, "1 processes are held for 1m30s") || strings.Contains(errs, "held no more") {
		t.Errorf("status %d, %+v, %s", status, a, errs)
	}
	waitFor(t, "progress after the release", moves(p.PID))
	if c := k.complaints(); len(c) > 0 {
		t.Errorf("the guest complains: %q", c)
	}
}
