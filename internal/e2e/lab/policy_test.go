package lab

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vmav.dev/vmav/internal/e2e/harness"
)

// A hold by policy keeps the process from running for its time, and no other; without
// anybody to keep it, it is refused.
func TestAPolicyHolds(t *testing.T) {
	k := newKiller(t, harness.Shared(t, "10.0.19041"))
	k.Say("pause", "CHURN 0")
	db := harness.Database(t)
	policy := harness.Write(t, filepath.Join(t.TempDir(), "policy.toml"), `
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
		if err := json.Unmarshal([]byte(text), &out); err != nil || len(out.Domains) != 1 || len(out.Domains[0].Actions) != 1 ||
			out.Domains[0].Actions[0].Action != "hold" {
			t.Fatalf("%v: %s", err, text)
		}
		return out
	}
	args := []string{"scan", "-c", harness.URI, k.Name, "--database", db, "--policy", policy, "--timeout", "2m", "--format", "json"}
	text, errs, status := harness.Vmav(t, args...)
	if a := read(text).Domains[0].Actions[0]; status != 2 || a.Outcome != "refused" || !strings.Contains(a.Reason, "--hold-for") {
		t.Errorf("nobody holds: status %d, %+v, %s", status, a, errs)
	}
	free := k.find(k.Start("burn.exe"))
	moves := func(pid uint64) func() bool {
		a := k.Number("progress", pid)
		return func() bool { return k.Number("progress", pid) != a }
	}
	harness.WaitFor(t, "progress before the hold", moves(p.PID))
	done := make(chan struct{})
	go func() {
		defer close(done)
		text, errs, status = harness.Vmav(t, append(args, "--hold-for", "90s")...)
	}()
	held := func() bool { // no progress between two heartbeats of the guest
		a := k.Number("progress", p.PID)
		for range 3 {
			k.Expect("HB ")
		}
		return k.Number("progress", p.PID) == a
	}
	harness.WaitFor(t, "the hold", held)
	harness.WaitFor(t, "progress of another process", moves(free.PID))
	select {
	case <-done:
		t.Errorf("vmav has ended with the process held: %d, %s %s", status, errs, text)
	case <-time.After(time.Second):
	}
	<-done
	if a := read(text).Domains[0].Actions[0]; status != 1 || a.Outcome != "held" || !strings.Contains(errs, "1 processes are held for 1m30s") ||
		strings.Contains(errs, "held no more") {
		t.Errorf("status %d, %+v, %s", status, a, errs)
	}
	harness.WaitFor(t, "progress after the release", moves(p.PID))
	if c := k.Complaints(); len(c) > 0 {
		t.Errorf("the guest complains: %q", c)
	}
}
