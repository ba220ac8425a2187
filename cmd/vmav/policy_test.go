package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vmav.dev/vmav/internal/verdict"
)

// vmav runs a command line.
func vmav(t *testing.T, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	var out, errs bytes.Buffer
	status = run(context.Background(), append([]string{"vmav"}, args...), &out, &errs)
	return out.String(), errs.String(), status
}

func file(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

const twoRules = `
[allow]
path = '\Program Files\Good\**'
[[rule]]
name = "tests"
signature = "*.Test.*"
action = "report"
[[rule]]
name = "users"
session = "user"
action = "kill"
evidence = true
`

func TestPolicyCheck(t *testing.T) {
	good := file(t, "policy.toml", twoRules)
	if out, errs, status := vmav(t, "policy", "check", good); status != 0 || out != "" || errs != "" {
		t.Errorf("%d: %q, %q", status, out, errs)
	}
	late := file(t, "policy.toml", twoRules+"[[rule]]\nname = 'late'\nsession = 2\naction = 'hold'\n")
	if _, errs, status := vmav(t, "policy", "check", late); status != 1 || !strings.Contains(errs, late+`:13: rule "late": never reached: rule "users"`) {
		t.Errorf("%d: %q", status, errs)
	}
	bad := file(t, "policy.toml", "[[rule]]\nname = 'x'\nacton = 'kill'\n")
	if _, errs, status := vmav(t, "policy", "check", bad); status != 2 || !strings.Contains(errs, bad+":1: rule[0].action: a rule must have one") ||
		!strings.Contains(errs, "\nvmav: "+bad+":3: rule[0].acton: unknown key\n") {
		t.Errorf("%d: %q", status, errs)
	}
	if _, errs, status := vmav(t, "policy", "check", filepath.Join(t.TempDir(), "none")); status != 2 || !strings.Contains(errs, "no such file") {
		t.Errorf("%d: %q", status, errs)
	}
}

func TestPolicyTestExplains(t *testing.T) {
	policy := file(t, "policy.toml", twoRules)
	finding := `{"signature": "Win.Trojan.X", "pid": 812, "process": "x.exe", "file": "\\Temp\\x.exe", "subject": {"session": 1}}`
	out, errs, status := vmav(t, "policy", "test", policy, "--finding", finding, "--format", "json")
	var got policyTest
	if err := json.Unmarshal([]byte(out), &got); err != nil || status != 0 {
		t.Fatalf("%d: %v, %q", status, err, errs)
	}
	if got.Verdict.Action != verdict.Kill || got.Verdict.Rule != "users" || !got.Verdict.Evidence || len(got.Steps) != 3 || got.Steps[1].Matches ||
		got.Steps[1].Why[0] != `signature "Win.Trojan.X" does not match "*.Test.*"` {
		t.Errorf("%s", out)
	}
	out, _, _ = vmav(t, "policy", "test", policy, "--finding", `{"signature": "Win.X", "pid": 4, "subject": {"session": 1}}`)
	if !strings.Contains(out, `report, by rule "users": its session is 1; guarded against kill: it is the System process`) ||
		!strings.Contains(out, "tests  no") {
		t.Errorf("%s", out)
	}
	if _, errs, status = vmav(t, "policy", "test", policy, "--finding", `{"signatur": "x"}`); status != 2 ||
		!strings.Contains(errs, `unknown field "signatur"`) {
		t.Errorf("%d: %q", status, errs)
	}
}

func TestPolicyShow(t *testing.T) {
	out, errs, status := vmav(t, "policy", "show", file(t, "policy.toml", twoRules))
	for _, want := range []string{`allow    report                  image \Program Files\Good\**`, "4  tests    report, notify          signature *.Test.*",
		"kill, evidence, notify  session user", "default  report, notify"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s%s", want, out, errs)
		}
	}
	if status != 0 {
		t.Errorf("status %d", status)
	}
}

// What is wrong with the settings or the policy of a scan is said before anything is
// read, with its line.
func TestScanRefusesWhatItDoesNotUnderstand(t *testing.T) {
	policy := file(t, "policy.toml", twoRules)
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"--config", file(t, "vmav.toml", "\nsorce = 'qemu'")}, "vmav.toml:2: sorce: unknown key"},
		{[]string{"--config", "/none/vmav.toml"}, "/none/vmav.toml: no such file"},
		{[]string{"--config", file(t, "vmav.toml", "policy = '/none/p.toml'")}, "/none/p.toml: no such file"},
		{[]string{"--policy", file(t, "policy.toml", "[[rule]]")}, "policy.toml:1: rule[0].name"},
		{[]string{"--policy", policy, "--action", "kill"}, "does not go with --policy"},
		{[]string{"--action", "delete"}, `action "delete": known are report, kill, hold and suspend`},
		{[]string{"--action", "hold"}, "action hold: nothing runs in a memory image"},
		{[]string{"--dry-run"}, "this one touches no guest"},
	} {
		_, errs, status := vmav(t, append([]string{"scan", "-a", "/none/image"}, tt.args...)...)
		if status != 2 || !strings.Contains(errs, tt.want) {
			t.Errorf("%v: %d, %q, want %q", tt.args, status, errs, tt.want)
		}
	}
	t.Setenv("VMAV_CONFIG", file(t, "vmav.toml", "x = 1"))
	if _, errs, status := vmav(t, "scan", "--all"); status != 2 || !strings.Contains(errs, "vmav.toml:1: x: unknown key") {
		t.Errorf("%d: %q", status, errs)
	}
}
