package history

import (
	"context"
	"regexp"
	"strings"
	"testing"
	"time"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/verdict"
)

// variable is what differs from run to run.
var variable = regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+ UTC|after [0-9.]+(ms|s)`)

func explained(lines []Line) string {
	var b strings.Builder
	for _, l := range lines {
		b.WriteString(l.Label + ": " + variable.ReplaceAllString(l.Text, "T") + "\n")
	}
	return b.String()
}

func TestExplainTellsWhatWasDecidedDoneAndSeen(t *testing.T) {
	ctx := context.Background()
	db := openDB(t, t.TempDir())
	r, err := db.Begin(ctx, Run{Origin: self, Operation: OperationScan, Domain: "win10", UUID: "6f0d9c1a-0000-4000-8000-000000000001",
		Engine: &finding.Engine{Version: "ClamAV 1.4.6"}})
	if err != nil {
		t.Fatal(err)
	}
	f := found(2552, "Vmav.Test.Malware")
	f.Verdict = verdict.Verdict{Action: verdict.Kill, Reason: "signature is Vmav.*"}
	f.Evidence = []finding.Exhibit{{Kind: finding.ExhibitScanned, SHA256: strings.Repeat("ab", 32), Size: 7},
		{Kind: finding.ExhibitMemory, Error: "the evidence store is full"}}
	if err := r.Found(ctx, &f); err != nil {
		t.Fatal(err)
	}
	show := func() string {
		t.Helper()
		d, err := db.Show(ctx, f.ID)
		if err != nil {
			t.Fatal(err)
		}
		return explained(Explain(&d))
	}
	if err := r.Acting(ctx, verdict.Kill, f.ID); err != nil {
		t.Fatal(err)
	}
	if got := show(); !strings.Contains(got, "Seen: nothing yet") || !strings.Contains(got, "Result: none") {
		t.Errorf("of a run that was cut off:\n%s", got)
	}
	if err := r.Acted(ctx, verdict.Kill, finding.Outcome{Code: "killed"}, killed(2552), nil, f.ID); err != nil {
		t.Fatal(err)
	}
	f.Action, f.Outcome = verdict.Kill, finding.Outcome{Code: "killed"}
	if err := r.End(ctx, scan(f)); err != nil {
		t.Fatal(err)
	}
	want := `Record: finding 2 of T
Domain: win10 (6f0d9c1a-0000-4000-8000-000000000001), Windows 10.0.19041
Found: the engine knows the rebuilt file as Vmav.Test.Malware
Where: process malware.exe, pid 2552: C:\Temp\malware.exe, 32768 bytes at 0x140000000
Fidelity: exact: the file that was loaded, up to its overlay; its preferred base by: checksum
SHA-256: abababababababababababababababababababababababababababababababab
Decided: kill: signature is Vmav.*
Done: kill requested T
Seen: kill: killed, recorded T
Seen: by way of its own thread, its end seen after 40.1 ms
Seen: the guest says: exit status 0xc0000906
Evidence: scanned, 7 bytes: vmav evidence extract abababababababababababababababababababababababababababababababab -o FILE
Evidence: memory: not kept: the evidence store is full
Run: scan 1 by ann (uid 1000), trigger cli: vmav scan win10
Engine: ClamAV 1.4.6, signatures of unknown age
Result: scanned T: 45 processes, 153 images, 44 distinct files, 1 findings, 0 errors
`
	if got := show(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	// A record with fields that this vmav does not know keeps them.
	err = db.write(ctx, func(tx *txn) error {
		_, err := tx.append(kindFinding, r.ID(), time.Now(), struct {
			finding.Finding
			Verdict map[string]any `json:"verdict"`
		}{found(8, "A"), map[string]any{"action": "report", "rule": "quarantine", "reason": "r", "unheard_of": true}})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	all, err := db.Entries(ctx, Filter{Limit: 1})
	if err != nil {
		t.Fatal(err)
	}
	d, err := db.Show(ctx, all[0].ID)
	if err != nil || !strings.Contains(string(d.Record), "unheard_of") {
		t.Errorf("%s, %v", d.Record, err)
	}
	if got := explained(Explain(&d)); !strings.Contains(got, "Decided: report, by the rule \"quarantine\": r\nDone: nothing: it was reported") {
		t.Errorf("got\n%s", got)
	}
	s, err := db.Scan(ctx, r.ID())
	if err != nil || !strings.HasPrefix(explained(ExplainRun(&s)), "Record: scan 1, begun T\nDomain: win10 (") {
		t.Errorf("%s, %v", explained(ExplainRun(&s)), err)
	}
}

// The kernel has PID 0 in findings, and PID 4 is the process System.
func TestExplainSaysWhereAFindingIs(t *testing.T) {
	ctx := context.Background()
	db := openDB(t, t.TempDir())
	for _, tt := range []struct {
		pid     uint64
		process string
		want    string
	}{
		{0, "", "the kernel"},
		{4, "System", "process System, pid 4"},
		{2552, "malware.exe", "process malware.exe, pid 2552"},
	} {
		f := found(tt.pid, "Vmav.Test.Malware")
		f.Process = tt.process
		r, err := db.Begin(ctx, Run{Origin: self, Operation: OperationScan, Domain: "win10"})
		if err == nil {
			err = r.Found(ctx, &f)
		}
		if err != nil {
			t.Fatal(err)
		}
		d, err := db.Show(ctx, f.ID)
		if err != nil {
			t.Fatal(err)
		}
		if got := explained(Explain(&d)); !strings.Contains(got, "\nWhere: "+tt.want+": ") {
			t.Errorf("no %q in\n%s", tt.want, got)
		}
	}
}
