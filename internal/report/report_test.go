package report

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/verdict"
)

type row struct {
	Name string `json:"name"`
	N    int    `json:"n"`
}

var cols = []Column[row]{
	{Title: "NAME", Text: func(r row) string { return r.Name }},
	{Title: "THE N", Text: func(r row) string { return strings.Repeat("9", r.N) }, Right: true},
}

func TestRows(t *testing.T) {
	rows := []row{{"a", 1}, {"日本", 6}, {"x\x1b[0m,\"", 2}}
	for f, want := range map[Format]string{
		Table: " NAME         THE N\n a                9\n 日本        999999\n x\\x1b[0m,\"      99\n",
		JSON: "[\n  {\n    \"name\": \"a\",\n    \"n\": 1\n  },\n  {\n    \"name\": \"日本\",\n    \"n\": 6\n  },\n  {\n" +
			"    \"name\": \"x\\u001b[0m,\\\"\",\n    \"n\": 2\n  }\n]\n",
		JSONL: "{\"name\":\"a\",\"n\":1}\n{\"name\":\"日本\",\"n\":6}\n{\"name\":\"x\\u001b[0m,\\\"\",\"n\":2}\n",
		CSV:   "name,the_n\na,9\n日本,999999\n\"x\\x1b[0m,\"\"\",99\n",
	} {
		var b bytes.Buffer
		if err := Rows(&b, f, rows, cols); err != nil {
			t.Fatal(err)
		}
		if b.String() != want {
			t.Errorf("%s:\n got %q\nwant %q", f, b.String(), want)
		}
	}
	var b bytes.Buffer
	if err := Rows(&b, JSON, []row(nil), cols); err != nil || b.String() != "[]\n" {
		t.Errorf("no rows: %q, %v", b.String(), err)
	}
}

func TestScanForPeopleAndPrograms(t *testing.T) {
	s := &finding.Sweep{Engine: finding.Engine{Version: "ClamAV 1.4.6", Private: true}, Domains: []finding.Scan{
		{Name: "win10", State: "running", Status: finding.StatusIncomplete, Build: "10.0.19041", Processes: 2, Images: 9, Files: 7,
			Findings: []finding.Finding{{Domain: "win10", PID: 812, Process: "mal\x1bware.exe", Image: `C:\Temp\malware.exe`, Base: 0x140000000, Size: 4096,
				Signature: "Test.Malware", Fidelity: finding.Fidelity{Coverage: 0.5}, Verdict: verdict.Verdict{Action: verdict.Report, Reason: "policy"},
				Action: verdict.Report, Outcome: finding.Outcome{Code: "reported"}}},
			Errors: []finding.Unread{{What: "process 99 (x)", Error: "page not present"}}},
		{Name: "tux", State: "running", Status: finding.StatusSkipped, Reason: "the guest is not Windows: it looks like Linux"},
	}}
	s.Summarise(1500 * time.Millisecond)
	var b bytes.Buffer
	if err := WriteScan(&b, s, false); err != nil {
		t.Fatal(err)
	}
	want := `win10: mal\x1bware.exe[812]: C:\Temp\malware.exe: Test.Malware FOUND
win10: process 99 (x): ERROR: page not present
win10: incomplete: Windows 10.0.19041, 2 processes, 9 images, 7 distinct files, 1 findings, 1 errors
tux: skipped: the guest is not Windows: it looks like Linux

 DOMAIN  PID  PROCESS          IMAGE                SIGNATURE     FIDELITY  ACTION  OUTCOME
 win10   812  mal\x1bware.exe  C:\Temp\malware.exe  Test.Malware  50.0 %    report  reported

Engine:     ClamAV 1.4.6, private, signatures of unknown age
Domains:    0 scanned, 1 incomplete, 1 skipped, 0 failed
Processes:  2
Images:     9
Findings:   1
Errors:     1
Time:       1.5 s
`
	if got := b.String(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	b.Reset()
	if err := Document(&b, s); err != nil {
		t.Fatal(err)
	}
	var back finding.Sweep
	if err := json.Unmarshal(b.Bytes(), &back); err != nil {
		t.Fatal(err)
	}
	if f := back.Domains[0].Findings[0]; f.Base != 0x140000000 || f.Process != "mal\x1bware.exe" || !strings.Contains(b.String(), `"base": "0x140000000"`) {
		t.Errorf("%+v from %s", f, b.String())
	}
}

// A finding in the kernel is in no process: its PID is 0, and it has no process's name.
func TestTheKernelIsNamed(t *testing.T) {
	s := &finding.Sweep{Domains: []finding.Scan{{Name: "win10", Status: finding.StatusScanned, Findings: []finding.Finding{
		{Domain: "win10", Image: `\Driver\rootkit.sys`, Signature: "Test.Rootkit", Action: verdict.Report,
			Outcome: finding.Outcome{Code: finding.OutcomeReported}}}}}}
	var b bytes.Buffer
	if err := WriteScan(&b, s, true); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"win10: kernel: \\Driver\\rootkit.sys: Test.Rootkit FOUND\n", " win10     0  kernel   \\Driver\\rootkit.sys  Test.Rootkit "} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, &b)
		}
	}
}
