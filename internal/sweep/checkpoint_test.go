package sweep

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/verdict"
)

func result(uuid string) finding.Scan {
	applied, dead, status, exited := finding.Milliseconds(1500*time.Microsecond), finding.Milliseconds(2*time.Second), finding.NTStatus(0xc0000906),
		time.Unix(5, 0).UTC()
	return finding.Scan{Name: "win", UUID: uuid, Status: finding.StatusScanned, Processes: 3,
		Findings: []finding.Finding{{Kind: finding.KindSignature, PID: 8, Base: 0x7ff000000000,
			Verdict: verdict.Verdict{Action: verdict.Kill, Reason: "policy"}, Action: verdict.Kill, Outcome: finding.Outcome{Code: "killed"}}},
		Errors: []finding.Unread{},
		Kills: []*finding.Kill{{Domain: "win", Outcome: finding.Outcome{Code: finding.OutcomeKilled}, Applied: &applied, Dead: &dead, ExitStatus: &status,
			Exited:     &exited,
			Surrogates: []finding.Surrogate{{Calls: []finding.Call{{Name: "NtClose", Status: 0xc0000008}}}}}}}
}

var (
	now = time.Now().UTC().Truncate(time.Second)
	run = Run{Boot: "b", Engine: "e", Options: "o", Started: now}
)

func open(t *testing.T, path string, r Run, resume bool) *Checkpoint {
	t.Helper()
	j, err := OpenCheckpoint(path, r, resume)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

// written is a checkpoint of a run that did three domains, of which one failed.
func written(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "state", "scan.checkpoint")
	j := open(t, path, run, false)
	failed := result("c")
	failed.Status = finding.StatusFailed
	for i, d := range []finding.Scan{result("a"), result("b"), failed} {
		if err := j.Add(Key{d.UUID, i + 1}, d); err != nil {
			t.Fatal(err)
		}
	}
	if err := j.Close(false); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestWhatWasDoneIsResumed(t *testing.T) {
	path := written(t)
	j := open(t, path, run, true)
	want := result("a")
	want.Resumed = true
	if got, ok := j.Find(Key{"a", 1}); !ok || !reflect.DeepEqual(got, want) {
		t.Errorf("%v: got  %+v\nwant %+v", ok, got, want)
	}
	for _, k := range []Key{{"a", 2}, {"c", 3}, {"d", 1}} {
		if _, ok := j.Find(k); ok {
			t.Errorf("%+v is done", k)
		}
	}
	if err := j.Add(Key{"d", 4}, result("d")); err != nil {
		t.Fatal(err)
	}
	if err := j.Close(false); err != nil {
		t.Fatal(err)
	}
	j = open(t, path, run, true)
	for _, k := range []Key{{"a", 1}, {"b", 2}, {"d", 4}} {
		if _, ok := j.Find(k); !ok {
			t.Errorf("%+v is lost after a second interruption", k)
		}
	}
	if err := j.Close(true); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("a checkpoint of a run that is complete")
	}
}

func TestWhatIsResumedIsTheSameRun(t *testing.T) {
	for name, r := range map[string]Run{
		"another boot":      {"x", "e", "o", now},
		"other signatures":  {"b", "x", "o", now},
		"other options":     {"b", "e", "x", now},
		"too old":           {"b", "e", "o", now.Add(MaxAge + time.Hour)},
		"from the future":   {"b", "e", "o", now.Add(-time.Hour)},
		"the run of before": run,
	} {
		j := open(t, written(t), r, true)
		_, ok := j.Find(Key{"a", 1})
		if ok != (r == run) {
			t.Errorf("%s: resumed: %v", name, ok)
		}
		j.Close(false)
	}
	j := open(t, written(t), run, false)
	if _, ok := j.Find(Key{"a", 1}); ok {
		t.Error("resumed although nobody asked for it")
	}
	j.Close(false)
}

// A checkpoint counts up to where a crash has torn it, and goes on from there.
func TestATornCheckpoint(t *testing.T) {
	whole, err := os.ReadFile(written(t))
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(whole, []byte("\n"))
	first, second := len(lines[0]), len(lines[0])+len(lines[1])
	for _, cut := range []int{0, 1, first - 1, first, first + 1, second - 2, second - 1, second, second + 1, len(whole) - 1} {
		path := filepath.Join(t.TempDir(), "j")
		if err := os.WriteFile(path, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		j := open(t, path, run, true)
		_, a := j.Find(Key{"a", 1})
		_, b := j.Find(Key{"b", 2})
		if wantA := cut >= len(lines[0])+len(lines[1]); a != wantA || b {
			t.Fatalf("cut at %d: a %v, b %v", cut, a, b)
		}
		if err := j.Add(Key{"e", 1}, result("e")); err != nil {
			t.Fatal(err)
		}
		j.Close(false)
		j = open(t, path, run, true)
		if _, ok := j.Find(Key{"e", 1}); !ok {
			t.Fatalf("cut at %d: what was added behind the tear is lost", cut)
		}
		j.Close(false)
	}
}

func FuzzCheckpoint(f *testing.F) {
	f.Add([]byte(`{"boot":"b","engine":"e","options":"o","started":"2026-01-02T03:04:05Z"}` + "\n" +
		`{"uuid":"a","id":1,"result":{"uuid":"a","status":"scanned"}}` + "\n"))
	r := run
	r.Started = time.Date(2026, 1, 2, 4, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, text []byte) {
		path := filepath.Join(t.TempDir(), "j")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := OpenCheckpoint(path, r, true)
		if err != nil {
			return
		}
		defer j.Close(true)
		for k, d := range j.done {
			if k.UUID != d.UUID || d.Status == finding.StatusFailed || !d.Resumed {
				t.Errorf("%+v: %+v", k, d)
			}
		}
	})
}
