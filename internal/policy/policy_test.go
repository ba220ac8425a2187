package policy

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vmav.dev/vmav/internal/tomlfile"
	"vmav.dev/vmav/internal/verdict"
)

func noLists(path string) ([]byte, error) { return nil, fmt.Errorf("open %s: none here", path) }

var sum = strings.Repeat("5a", 32)

const all = `
dry_run = true
surrogate = '\Windows\System32\svchost.exe'

[allow]
hash = ["` + "5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a" + `"]
path = ['\Program Files\Good\**', '**\x.dll']

[[rule]]
name = "everything at once"
kind = ["signature", "modified"]
signature = "Win.*"
process = "*.exe"
path = '\Users\**'
image = '**\*.dll'
parent = ["explorer.exe", '\Windows\*']
domain = ["win*", "dev-?"]
hash = "` + "6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b6b" + `"
session = [0, "user"]
profile = "exact"
form = "file"
min_coverage = 0.8
exact = true
guarded = false
action = "kill"
evidence = true
notify = false

[[rule]]
name = "the rest"
action = "suspend"
`

func TestEveryKeyIsRead(t *testing.T) {
	p, err := Parse("policy.toml", []byte(all), noLists)
	if err != nil {
		t.Fatal(err)
	}
	if !p.DryRun || len(p.Surrogates) != 1 || len(p.Allow.Hashes) != 1 || len(p.Allow.Paths) != 2 || len(p.Rules) != 2 || len(p.Warnings) != 0 {
		t.Fatalf("%+v", p)
	}
	r := p.Rules[0]
	if r.Name != "everything at once" || len(r.Kinds) != 2 || len(r.Signatures) != 1 || len(r.Processes) != 1 || len(r.Paths) != 1 || len(r.Images) != 1 ||
		len(r.Parents) != 2 || len(r.Domains) != 2 || len(r.Hashes) != 1 || r.Sessions == nil || len(r.Sessions.IDs) != 1 || !r.Sessions.User ||
		r.Profile != "exact" || r.Form != "file" || r.MinCoverage != 0.8 || r.Exact == nil || !*r.Exact || r.Guarded == nil || *r.Guarded ||
		r.Action != verdict.Kill || !r.Evidence || r.Notify {
		t.Errorf("%+v", r)
	}
	// What it reads is what decides.
	f := verdict.Finding{Kind: "signature", Signature: "Win.X", Image: `\Users\u\y.dll`, SHA256: strings.Repeat("6B", 32), Coverage: 1, Exact: true}
	s := verdict.Subject{Domain: "win10", PID: 8, Name: "x.exe", Path: `\Device\HarddiskVolume2\Users\u\x.exe`, Parent: "explorer.exe"}
	if v := verdict.Decide(p.Policy, f, s); v.Action != verdict.Kill || v.Rule != "everything at once" || !v.Evidence || v.Notify {
		t.Errorf("%+v", v)
	}
	if r := p.Rules[1]; r.Sessions != nil || r.Exact != nil || r.Guarded != nil || r.Hashes != nil || !r.Notify || r.Evidence || r.Action != verdict.Suspend ||
		p.Lines[1] != p.Lines[0]+20 {
		t.Errorf("%+v, lines %v", r, p.Lines)
	}
}

func TestErrors(t *testing.T) {
	rule := "[[rule]]\nname = 'a'\naction = 'kill'\n"
	for _, tt := range []struct{ text, want string }{
		{rule + "proces = 'x'", "policy.toml:4: rule[0].proces: unknown key"},
		{"[[rules]]", "policy.toml:1: rules: unknown key"},
		{"[[rule]]\naction = 'kill'", "policy.toml:1: rule[0].name: a rule must have one"},
		{"[[rule]]\nname = 'a'", "policy.toml:1: rule[0].action: a rule must have one"},
		{"[[rule]]\nname = 'a'\naction = 'delete'", `policy.toml:3: rule[0].action: "delete": known are report, kill, hold and suspend`},
		{rule + rule, `policy.toml:5: rule[1].name: "a" is the name of the rule of line 1, too`},
		{"[[rule]]\nname = 'default'\naction = 'kill'", "policy.toml:2: rule[0].name: "},
		{"[[rule]]\nname = \"a\\u001b\"\naction = 'kill'", "cannot be printed"},
		{rule + "kind = 'implant'", `policy.toml:4: rule[0].kind: "implant": known are signature and modified`},
		{rule + "signature = []", "policy.toml:4: rule[0].signature: an empty list"},
		{rule + "signature = ['a', 5]", "policy.toml:4: rule[0].signature[1]: it is an integer, not a string"},
		{rule + "signature = ''", "policy.toml:4: rule[0].signature: an empty pattern"},
		{rule + "process = '\\x\\y.exe'", "the key for that is path"},
		{rule + "path = 'x.exe'", "policy.toml:4: rule[0].path: pattern \"x.exe\": a path begins with"},
		{rule + "hash = 'abc'", "policy.toml:4: rule[0].hash: \"abc\" is no SHA-256"},
		{rule + "session = -1", "policy.toml:4: rule[0].session: -1 is no session"},
		{rule + "session = 'console'", `policy.toml:4: rule[0].session: "console": write a number`},
		{rule + "session = [1, [2]]", "policy.toml:4: rule[0].session[1]: it is no session"},
		{rule + "session = []", "an empty list"},
		{rule + "profile = 'good'", "known are exact and inferred"},
		{rule + "min_coverage = 80", "policy.toml:4: rule[0].min_coverage: 80: it is a share"},
		{rule + "evidence = 'yes'", "policy.toml:4: rule[0].evidence: it is a string, not true or false"},
		{"[allow]\nhash_file = 'x.sha256'", "policy.toml:2: allow.hash_file: open x.sha256: none here"},
		{"[allow]\npath = 'x'", "policy.toml:2: allow.path: pattern"},
		{"[allow]\npath = 'C:\\x.dll'", "without their volume"},
		{rule + "image = '\\Device\\HarddiskVolume1\\x.dll'", "policy.toml:4: rule[0].image: pattern"},
		{"surrogate = '\\Device\\HarddiskVolume1\\x.exe'", "policy.toml:1: surrogate: "},
		{"surrogate = '\\Windows\\*'", "write a path without its volume"},
		{rule + "process = [" + strings.Repeat("'x',", 6000) + "]\nsignature = [" + strings.Repeat("'x',", 6000) + "]", "more than 10000 patterns"},
		{strings.Repeat(rule, MaxRules+1), "1001 rules: 1000 are possible"},
	} {
		p, err := Parse("policy.toml", []byte(tt.text), noLists)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%.200q: %v, want %s", tt.text, err, tt.want)
		}
		if p.Rules != nil || p.Surrogates != nil {
			t.Errorf("%.200q: a policy beside an error", tt.text)
		}
	}
}

func TestListsOfHashes(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return file
	}
	write("good.sha256", "# ours\n\n"+sum+"  good.exe\n"+strings.ToUpper(strings.Repeat("6b", 32))+"\n")
	p, err := Load(write("policy.toml", "[allow]\nhash_file = 'good.sha256'\n"), true)
	if err != nil || len(p.Allow.Hashes) != 2 || p.File == "" {
		t.Fatalf("%+v, %v", p, err)
	}
	if v := verdict.Decide(p.Policy, verdict.Finding{Kind: "signature", SHA256: sum}, verdict.Subject{PID: 8}); v.Rule != verdict.RuleAllow {
		t.Errorf("%+v", v)
	}
	write("good.sha256", sum+"\nno hash\n")
	if _, err = Load(filepath.Join(dir, "policy.toml"), true); err == nil || !strings.Contains(err.Error(), `good.sha256: line 2: "no" is no SHA-256`) {
		t.Errorf("%v", err)
	}
	if err := os.Chmod(filepath.Join(dir, "good.sha256"), 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err = Load(filepath.Join(dir, "policy.toml"), true); !errors.Is(err, tomlfile.ErrWritable) {
		t.Errorf("%v", err)
	}
}

func TestAbsentFile(t *testing.T) {
	none := filepath.Join(t.TempDir(), "policy.toml")
	if p, err := Load(none, false); err != nil || len(p.Rules) != 0 || len(p.Surrogates) == 0 || p.File != "" {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := Load(none, true); err == nil {
		t.Error("no error")
	}
}

func TestWarningsNameTheLine(t *testing.T) {
	p, err := Parse("policy.toml", []byte("[[rule]]\nname = 'all'\naction = 'report'\n\n[[rule]]\nname = 'late'\naction = 'kill'\n"), noLists)
	if err != nil || len(p.Warnings) != 1 || p.Warnings[0].Error() != `policy.toml:5: rule "late": never reached: rule "all" matches all that it does` {
		t.Errorf("%v, %v", p.Warnings, err)
	}
}

// Whatever the text, an error leaves no policy, and a policy that is read decides
// without breaking a guard.
func FuzzParse(f *testing.F) {
	f.Add([]byte(all))
	f.Add([]byte("[[rule]]\nname = 'a'\naction = 'kill'\nsession = 'user'\nsignature = ['*?*']\npath = '**\\x'"))
	f.Add([]byte("rule = [{name = 'x', action = 'hold', kind = 'modified'}]\n[allow]\nhash_file = 'x'"))
	critical := verdict.Subject{PID: 8, Name: "a.exe", Path: `\Device\HarddiskVolume2\a.exe`, Critical: true}
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Parse("policy.toml", data, func(string) ([]byte, error) { return data, nil })
		if err != nil {
			if len(p.Rules) > 0 {
				t.Error("a policy beside an error")
			}
			return
		}
		for _, kind := range verdict.Kinds() {
			v := verdict.Decide(p.Policy, verdict.Finding{Kind: kind, Signature: "Win.X", Image: critical.Path, SHA256: sum}, critical)
			if v.Action == verdict.Kill || v.Action == verdict.Hold || v.Reason == "" {
				t.Errorf("%+v", v)
			}
		}
	})
}
