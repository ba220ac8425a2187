package finding

import (
	"encoding/json"
	"errors"
	"reflect"
	"testing"
	"time"

	"vmav.dev/vmav/internal/verdict"
)

func TestSort(t *testing.T) {
	all := []Finding{
		{PID: 8, Base: 0x1000, Signature: "B"},
		{PID: 8, Base: 0x2000, Signature: "A"},
		{PID: 4, Base: 0x9000, Signature: "C"},
		{PID: 8, Base: 0x1000, Signature: "A"},
	}
	want := []Finding{all[2], all[3], all[0], all[1]}
	if Sort(all); !reflect.DeepEqual(all, want) {
		t.Errorf("got %+v, want %+v", all, want)
	}
}

// Every code is here, so that a new one has to be thought of.
func TestDoneAndText(t *testing.T) {
	for _, c := range []struct {
		outcome Outcome
		done    bool
		text    string
	}{
		{Outcome{Code: OutcomeReported}, false, "reported"},
		{Outcome{Code: OutcomeKilled}, true, "killed"},
		{Outcome{Code: OutcomeExited, Reason: "it ended by itself"}, true, "exited: it ended by itself"},
		{Outcome{Code: OutcomePending, Reason: "the domain is paused"}, false, "pending: the domain is paused"},
		{Outcome{Code: OutcomeRefused, Reason: "x: y"}, false, "refused: x: y"},
		{Outcome{Code: OutcomeFailed}, false, "failed"},
		{Outcome{Code: OutcomeGone}, false, "gone"},
		{Outcome{Code: OutcomePlanned}, true, "planned"},
		{Outcome{Code: OutcomeHeld}, true, "held"},
		{Outcome{Code: OutcomeSuspended}, true, "suspended"},
	} {
		if got := c.outcome.Code.Done(); got != c.done {
			t.Errorf("%s: done %v, want %v", c.outcome.Code, got, c.done)
		}
		if got := c.outcome.Text(); got != c.text {
			t.Errorf("text %q, want %q", got, c.text)
		}
		// A finding whose verdict asks for more than a report is done when its outcome is.
		f := Finding{Verdict: verdict.Verdict{Action: verdict.Kill}, Outcome: c.outcome}
		if got := f.Done(); got != c.done {
			t.Errorf("finding to kill, %s: done %v, want %v", c.outcome.Code, got, c.done)
		}
		if f.Verdict.Action = verdict.Report; !f.Done() {
			t.Errorf("finding to report, %s: it is not done", c.outcome.Code)
		}
	}
}

// members returns the members of the JSON of a value.
func members(t *testing.T, v any) map[string]any {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]any)
	if err := json.Unmarshal(text, &out); err != nil {
		t.Fatal(err)
	}
	return out
}

// The code and the reason of an outcome are members of the record that has it: scripts and
// the history read them there.
func TestOutcomeIsPartOfItsRecord(t *testing.T) {
	o := Outcome{Code: OutcomeRefused, Reason: "why"}
	for _, v := range []any{&Finding{Outcome: o}, &Kill{Outcome: o}, &Act{Outcome: o}} {
		m := members(t, v)
		if m["outcome"] != "refused" || m["reason"] != "why" {
			t.Errorf("%T: outcome %v, reason %v", v, m["outcome"], m["reason"])
		}
	}
	if m := members(t, &Kill{Outcome: Outcome{Code: OutcomeKilled}}); m["reason"] != nil {
		t.Errorf("a kill without a reason has the reason %v", m["reason"])
	}
	if m := members(t, &Finding{Again: true}); m["Again"] != nil || m["again"] != nil {
		t.Error("the JSON of a finding says that it was found again")
	}
}

func TestKillReadsWhatItWrote(t *testing.T) {
	applied, status := Milliseconds(1500*time.Microsecond), NTStatus(0xc0000906)
	want := Kill{Domain: "win", Target: Process{PID: 812, Name: "x.exe", EPROCESS: 0xffff800012345678, DTB: 0x1aa000, Created: time.Unix(1700000000, 0).UTC()},
		Outcome: Outcome{Code: OutcomeKilled}, Method: MethodDirect, Requested: time.Unix(1700000001, 0).UTC(), Applied: &applied, ExitStatus: &status}
	m := members(t, &want)
	if m["applied_ms"] != 1.5 || m["exit_status"] != "0xc0000906" || m["target"].(map[string]any)["eprocess"] != "0xffff800012345678" {
		t.Errorf("JSON %v", m)
	}
	text, err := json.Marshal(&want)
	if err != nil {
		t.Fatal(err)
	}
	var got Kill
	if err := json.Unmarshal(text, &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v, error %v", got, want, err)
	}
}

func TestSummarise(t *testing.T) {
	s := Sweep{Domains: []Scan{
		{Status: StatusScanned, Processes: 3, Images: 30, Findings: make([]Finding, 2)},
		{Status: StatusIncomplete, Processes: 4, Ended: 1, Images: 40, Errors: make([]Unread, 5)},
		{Status: StatusSkipped},
	}}
	s.Summarise(1500 * time.Millisecond)
	want := Summary{Domains: 3, Scanned: 1, Incomplete: 1, Skipped: 1, Processes: 7, Ended: 1, Images: 70, Findings: 2, Errors: 5, Seconds: 1.5}
	if s.Summary != want || !s.Complete() {
		t.Errorf("got %+v, complete %v, want %+v", s.Summary, s.Complete(), want)
	}
	s.Domains = append(s.Domains, Scan{Status: StatusFailed})
	if s.Summarise(0); s.Summary.Failed != 1 || s.Complete() {
		t.Errorf("with a failed domain: %+v, complete %v", s.Summary, s.Complete())
	}
}

func TestErrorsOfAScanAreBounded(t *testing.T) {
	var d Scan
	for range MaxErrors + 1 {
		d.Fail("x", errors.New("y"))
	}
	if len(d.Errors) != MaxErrors {
		t.Errorf("%d errors, want %d", len(d.Errors), MaxErrors)
	}
}
