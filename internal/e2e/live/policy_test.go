package live

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

	"vmav.dev/vmav/internal/domain"
	"vmav.dev/vmav/internal/e2e/harness"
	"vmav.dev/vmav/internal/notify"
)

// A policy decides on what is found in a running domain; the domain is suspended, and
// everybody whom the settings name is told.
func TestAPolicySuspendsAndTells(t *testing.T) {
	t.Parallel()
	g := harness.Start(t, "10.0.19041")
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
	policy := harness.Write(t, filepath.Join(dir, "policy.toml"), `
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
	script := harness.Write(t, filepath.Join(dir, "told.sh"), "#!/bin/sh\ncat >>\"$1\"\n", 0o755)
	settings := harness.Write(t, filepath.Join(dir, "vmav.toml"), fmt.Sprintf(`
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
`, harness.URI, policy, harness.Database(t), script, filepath.Join(dir, "told"), dir, server.URL,
		harness.Write(t, filepath.Join(dir, "key"), "0123456789abcdef", 0o600)), 0o644)
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
		text, errs, status := harness.Vmav(t, append([]string{"scan", "--config", settings, g.Name, "--format", "json"}, more...)...)
		if err := json.Unmarshal([]byte(text), &out); err != nil || status != 1 || len(out.Domains) != 1 || len(out.Domains[0].Findings) != 2 ||
			len(out.Domains[0].Actions) != 1 {
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
	state := func() string { t.Helper(); return strings.TrimSpace(harness.Virsh(t, "domstate", g.Name)) }
	if out := scan("--dry-run"); out.Domains[0].Actions[0].Outcome != "planned" || state() != "running" {
		t.Errorf("a dry run: %+v, and the domain is %s", out, state())
	}
	if out := scan(); out.Domains[0].Actions[0].Outcome != "suspended" || state() != "paused" {
		t.Errorf("%+v, and the domain is %s", out, state())
	}
	harness.Virsh(t, "resume", g.Name)
	// Another run of the domain than the one that was looked at is not suspended.
	h, err := domain.Connect(harness.URI)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	d, err := h.Find(g.Name)
	if err != nil {
		t.Fatal(err)
	}
	d.ID++
	if err := h.Suspend(context.Background(), d); !errors.Is(err, domain.ErrNotRunning) || state() != "running" {
		t.Errorf("%v, and the domain is %s", err, state())
	}

	mu.Lock()
	defer mu.Unlock()
	if len(posted) != 2 || !posted[0].DryRun || posted[1].DryRun || posted[1].Finding.Process != "malware.exe" || posted[1].Finding.Code != "suspended" ||
		posted[1].Domain != g.Name || posted[1].Trigger != "cli" {
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
		fmt.Sprintf(`vmav_findings_total{domain=%q,verdict="report"} 2`, g.Name), fmt.Sprintf("vmav_sweep_complete{domain=%q} 1", g.Name)} {
		if !strings.Contains(string(prom), want) {
			t.Errorf("no %s in\n%s", want, prom)
		}
	}
}
