package history_test

import (
	"context"
	"fmt"
	"log"
	"os"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/history"
	"vmav.dev/vmav/internal/verdict"
)

// A scan is recorded as it goes: its beginning, each finding before anyone is told of it,
// each action before and after it is carried out, its end.
func Example() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ctx := context.Background()
	db, err := history.Open(dir)
	if err != nil {
		log.Fatal(err)
	}
	defer db.Close()

	run, err := db.Begin(ctx, history.Run{Origin: history.Self(history.TriggerCLI, os.Args), Operation: history.OperationScan, Domain: "win10"})
	if err != nil {
		log.Fatal(err)
	}
	f := finding.Finding{Kind: finding.KindSignature, Domain: "win10", PID: 2552, Process: "malware.exe", Image: `C:\Temp\malware.exe`,
		Signature: "Win.Trojan.Agent-1", Verdict: verdict.Verdict{Action: verdict.Kill, Rule: "users"}}
	if err := run.Found(ctx, &f); err != nil {
		log.Fatal(err)
	}
	killed := finding.Outcome{Code: finding.OutcomeKilled}
	if err := run.Acting(ctx, verdict.Kill, f.ID); err != nil {
		log.Fatal(err)
	}
	if err := run.Acted(ctx, verdict.Kill, killed, nil, nil, f.ID); err != nil {
		log.Fatal(err)
	}
	f.Action, f.Outcome = verdict.Kill, killed
	if err := run.End(ctx, &finding.Scan{Name: "win10", Status: finding.StatusScanned, Findings: []finding.Finding{f}}); err != nil {
		log.Fatal(err)
	}

	entries, err := db.Entries(ctx, history.Filter{Signature: "Win.*", Outcome: finding.OutcomeKilled})
	if err != nil {
		log.Fatal(err)
	}
	for _, e := range entries {
		fmt.Printf("%d: %s: %s: %s, %s\n", e.ID, e.Domain, finding.Where(e.PID, e.Process), e.Signature, e.Outcome.Text())
	}
	whole, err := db.Verify(ctx, nil)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("records that are as they were written:", whole.Records)
	// Output:
	// 2: win10: process malware.exe, pid 2552: Win.Trojan.Agent-1, killed
	// records that are as they were written: 5
}
