package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	_ "github.com/mattn/go-sqlite3" // changes a history behind its back

	"vmav.dev/vmav/internal/clam"
	"vmav.dev/vmav/internal/ntguest"
)

// marker is in the code of the guest's malware.exe (testdata/ntguest/user/malware.c).
const marker = "VMAV-TEST-MALWARE"

// said is what a command wrote, with its exit status.
type said struct {
	out, err string
	status   int
}

func vmavSays(args ...string) said {
	var out, errs bytes.Buffer
	status := run(context.Background(), append([]string{"vmav"}, args...), &out, &errs)
	return said{out.String(), errs.String(), status}
}

// recorded is what is looked at of a record.
type recorded struct {
	ID, Scan                   int64
	Signature, SHA256, Process string
	Action, Outcome, Trigger   string
	Evidence                   []struct{ Kind, SHA256, Error string }
	Record                     map[string]any
	Run                        struct{ Status, Command string }
}

func decodeInto(t *testing.T, s said, into any) {
	t.Helper()
	if s.status != 0 {
		t.Fatalf("status %d: %s", s.status, s.err)
	}
	if err := json.Unmarshal([]byte(s.out), into); err != nil {
		t.Fatalf("%v in %q", err, s.out)
	}
}

func markerDatabase(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "test.ndb")
	if err := os.WriteFile(path, []byte("Vmav.Test.Malware:1:*:"+hex.EncodeToString([]byte(marker))+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// From a scan to its record, its explanation and its evidence: what clamd finds in the
// extracted file it does not find in the sealed one.
func TestAScanIsRecordedWithItsEvidence(t *testing.T) {
	image, _ := laidOut(t, ntguest.Options{Build: "10.0.19041", Seed: 4})
	dir := filepath.Join(t.TempDir(), "state")
	t.Setenv("VMAV_STATE_DIRECTORY", dir)
	// One clamd for all.
	engine, err := clam.Open(context.Background(), clam.Options{Databases: []string{markerDatabase(t)}, TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	scan := []string{"scan", "-a", image, "--clamd", engine.Info().Socket}
	first := vmavSays(append(scan, "--evidence", "--trigger", "timer")...)
	if first.status != 1 || first.err != "" || !strings.Contains(first.out, "vmav history show 2 explains") {
		t.Fatalf("%+v", first)
	}
	// Or as a policy says.
	rule := file(t, "policy.toml", "[[rule]]\nname = 'keep'\nsignature = '*'\naction = 'report'\nevidence = true\n")
	kept := vmavSays(append(scan, "--policy", rule, "--state-directory", filepath.Join(t.TempDir(), "kept"), "--format", "json")...)
	if kept.status != 1 || !strings.Contains(kept.out, `"kind": "fidelity"`) {
		t.Fatalf("%+v", kept)
	}
	if second := vmavSays(append(scan, "--no-history")...); second.status != 1 || strings.Contains(second.out, "vmav history") {
		t.Fatalf("%+v", second)
	}
	var all []recorded
	decodeInto(t, vmavSays("history", "--format", "json"), &all)
	if len(all) != 1 || all[0].Signature != "Vmav.Test.Malware" || all[0].Trigger != "timer" || all[0].Outcome != "reported" || len(all[0].Evidence) != 3 {
		t.Fatalf("%+v", all)
	}
	id := fmt.Sprint(all[0].ID)
	var one recorded
	decodeInto(t, vmavSays("history", "show", id, "--format", "json"), &one)
	if one.SHA256 != all[0].SHA256 || one.Run.Status != "scanned" || one.Record["signature"] != "Vmav.Test.Malware" {
		t.Errorf("%+v", one)
	}
	text := vmavSays("history", "show", id)
	for _, want := range []string{"knows the rebuilt file as Vmav.Test.Malware", "process malware.exe", "Fidelity:  exact", "Decided:   report",
		"nothing: it was reported", "vmav evidence extract " + one.SHA256, "trigger timer"} {
		if !strings.Contains(text.out, want) {
			t.Errorf("no %q in\n%s", want, text.out)
		}
	}
	if s := vmavSays("history", "verify"); s.status != 0 || !strings.Contains(s.out, "whole: 3 records") {
		t.Errorf("%+v", s)
	}
	checkEvidence(t, dir, engine, one)
	checkFilters(t, all[0])
	checkTampering(t, dir)
}

func checkEvidence(t *testing.T, dir string, engine *clam.Engine, one recorded) {
	t.Helper()
	found := func(data []byte) string {
		t.Helper()
		res, err := engine.Scan(context.Background(), "evidence", data)
		if err != nil || res.Skipped != "" {
			t.Fatalf("%+v, %v", res, err)
		}
		return res.Signature
	}
	var items []struct{ SHA256, Kind, Path string }
	decodeInto(t, vmavSays("evidence", "list", "--format", "json"), &items)
	kinds := map[string]int{}
	for _, it := range items {
		kinds[it.Kind]++
		sealed, err := os.ReadFile(it.Path)
		if err != nil {
			t.Fatal(err)
		}
		if got := found(sealed); got != "" {
			t.Errorf("clamd finds %s in the sealed %s", got, it.Kind)
		}
		out := filepath.Join(t.TempDir(), "extracted")
		if s := vmavSays("evidence", "extract", it.SHA256[:12], "-o", out); s.status != 0 {
			t.Fatalf("%+v", s)
		}
		data, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		if sum := fmt.Sprintf("%x", sha256.Sum256(data)); sum != it.SHA256 {
			t.Errorf("%s: extracted as %s", it.SHA256, sum)
		}
		if st, err := os.Stat(out); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", st.Mode(), err)
		}
		if s := vmavSays("evidence", "extract", it.SHA256, "-o", out); s.status != 2 || !strings.Contains(s.err, "exists") {
			t.Errorf("over a file: %+v", s)
		}
		switch got := found(data); {
		case it.Kind == "scanned" && (it.SHA256 != one.SHA256 || got != "Vmav.Test.Malware"):
			t.Errorf("clamd finds %q in the extracted file %s", got, it.SHA256)
		case it.Kind == "fidelity" && !json.Valid(data):
			t.Errorf("the fidelity record is %q", data)
		}
	}
	if fmt.Sprint(kinds) != "map[fidelity:1 memory:1 scanned:1]" {
		t.Errorf("%v", kinds)
	}
	var it struct{ Findings []int64 }
	decodeInto(t, vmavSays("evidence", "show", one.Evidence[1].SHA256, "--format", "json"), &it)
	if len(it.Findings) != 1 || it.Findings[0] != one.ID {
		t.Errorf("%+v, want finding %d", it, one.ID)
	}
	if s := vmavSays("evidence", "prune", "--max-size", "1K", "--keep", "0"); s.status != 0 || !strings.Contains(s.out, "items removed") {
		t.Errorf("%+v", s)
	}
	if s := vmavSays("evidence", "extract", one.SHA256); s.status != 2 || !strings.Contains(s.err, "-o") {
		t.Errorf("without a file: %+v", s)
	}
}

func checkFilters(t *testing.T, one recorded) {
	t.Helper()
	yesterday := time.Now().Add(-24 * time.Hour).Format(time.DateOnly)
	for _, c := range []struct {
		args []string
		want int
	}{
		{nil, 1}, {[]string{"list", "--domain", "guest.raw"}, 1}, {[]string{"--domain", "other"}, 0},
		{[]string{"--since", "1h"}, 1}, {[]string{"--since", yesterday, "--until", "1h"}, 0}, {[]string{"--until", "2000-01-02 03:04"}, 0},
		{[]string{"list", "--signature", "Vmav.*"}, 1}, {[]string{"--signature", "Vmav"}, 0}, {[]string{"--action", "report"}, 1},
		{[]string{"--action", "kill"}, 0},
		{[]string{"--outcome", "reported"}, 1}, {[]string{"--outcome", "killed"}, 0}, {[]string{"--sha256", one.SHA256}, 1}, {[]string{"--limit", "1"}, 1},
		{[]string{"--runs"}, 1},
	} {
		for format, head := range map[string]int{"table": 1, "csv": 1, "jsonl": 0} {
			s := vmavSays(append(append([]string{"history"}, c.args...), "--format", format)...)
			if n := strings.Count(s.out, "\n"); s.status != 0 || n != c.want+head {
				t.Errorf("%v as %s: %+v; want %d", c.args, format, s, c.want)
			}
		}
	}
	for _, c := range []struct{ args, want string }{
		{"--since soon", "is no time"}, {"--limit -1", "a limit of -1"}, {"show", "needs the ID"}, {"show x", "needs the ID"},
		{"show 999", "no finding, kill or run"},
		{"show 1 --format csv", "as CSV"}, {"--runs --action kill", "--runs goes with"}, {"frobnicate", `no command history "frobnicate"`},
		{"verify --head 3", "NUMBER:MAC"}, {"prune --keep 1y", "is no duration"}, {"prune --max-size 1Q", "is no size"}, {"--format xml", `format "xml"`},
	} {
		if s := vmavSays(append([]string{"history"}, strings.Fields(c.args)...)...); s.status != 2 || !strings.Contains(s.err, c.want) {
			t.Errorf("history %s: %+v; want %q", c.args, s, c.want)
		}
	}
}

func checkTampering(t *testing.T, dir string) {
	t.Helper()
	head := vmavSays("history", "verify").out
	head = strings.TrimSpace(head[strings.LastIndex(head, " "):])
	if s := vmavSays("history", "verify", "--head", head); s.status != 0 {
		t.Errorf("%+v", s)
	}
	db, err := sql.Open("sqlite3", filepath.Join(dir, "history.db"))
	if err == nil {
		_, err = db.Exec("UPDATE log SET body = replace(body, 'malware.exe', 'notepad.exe') WHERE seq = 2")
		db.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	if s := vmavSays("history", "verify"); s.status != 2 || !strings.Contains(s.err, "record 2 (finding") {
		t.Errorf("%+v", s)
	}
	if s := vmavSays("history", "prune", "--keep", "1ns", "--max-size", "0"); s.status != 0 || !strings.Contains(s.out, "3 records removed") {
		t.Errorf("%+v", s)
	}
}

// Where nothing can be recorded that is said once and the scan goes on, unless evidence
// was asked for.
func TestWhereNothingCanBeRecorded(t *testing.T) {
	image, _ := laidOut(t, ntguest.Options{Build: "10.0.19041", Seed: 4})
	engine, err := clam.Open(context.Background(), clam.Options{Databases: []string{markerDatabase(t)}, TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	plain := file(t, "file", "") // no directory
	t.Setenv("VMAV_STATE_DIRECTORY", filepath.Join(plain, "state"))
	scan := []string{"scan", "-a", image, "--clamd", engine.Info().Socket}
	if s := vmavSays(scan...); s.status != 1 || strings.Count(s.err, "\n") != 1 || !strings.Contains(s.err, "nothing is recorded") ||
		!strings.Contains(s.err, plain) {
		t.Errorf("%+v", s)
	}
	if s := vmavSays(append(scan, "--evidence")...); s.status != 2 || !strings.Contains(s.err, plain) || s.out != "" {
		t.Errorf("with evidence: %+v", s)
	}
	rule := file(t, "policy.toml", "[[rule]]\nname = 'keep'\nsignature = 'x'\naction = 'report'\nevidence = true\n")
	if s := vmavSays(append(scan, "--policy", rule)...); s.status != 2 || !strings.Contains(s.err, plain) || s.out != "" {
		t.Errorf("with a policy that keeps evidence: %+v", s)
	}
	if s := vmavSays(append(scan, "--evidence", "--no-history")...); s.status != 2 || !strings.Contains(s.err, "--no-history") {
		t.Errorf("evidence without history: %+v", s)
	}
	if s := vmavSays(append(scan, "--trigger", "boredom")...); s.status != 2 || !strings.Contains(s.err, "trigger") {
		t.Errorf("%+v", s)
	}
	for _, args := range [][]string{{"history"}, {"history", "--runs"}, {"evidence", "list"}, {"history", "prune"}, {"evidence", "prune"}} {
		if s := vmavSays(append(args, "--state-directory", t.TempDir())...); s.status != 0 || !strings.Contains(s.err, "no ") {
			t.Errorf("%v of nothing: %+v", args, s)
		}
	}
}
