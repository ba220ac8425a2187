package verdict_test

import (
	"fmt"
	"log"

	"vmav.dev/vmav/internal/verdict"
)

// The first rule that matches decides. A guard stands above the rules: what Windows cannot
// do without is not killed, whatever they say.
func ExampleDecide() {
	users, err := verdict.NewPathGlob(`\Users\**`)
	if err != nil {
		log.Fatal(err)
	}
	policy := verdict.Policy{Rules: []verdict.Rule{
		{Name: "in a user's folder", Paths: []verdict.Glob{users}, Action: verdict.Kill, Evidence: true},
		{Name: "all others", Action: verdict.Suspend},
	}}
	found := verdict.Finding{Kind: verdict.KindSignature, Signature: "Win.Trojan.Agent-1"}
	for _, process := range []verdict.Subject{
		{PID: 2552, Name: "malware.exe", Path: `\Device\HarddiskVolume2\Users\ann\malware.exe`, Session: 1},
		{PID: 812, Name: "svchost.exe", Path: `\Device\HarddiskVolume2\Windows\System32\svchost.exe`},
		{PID: 356, Name: "csrss.exe", Path: `\Device\HarddiskVolume2\Users\ann\csrss.exe`, Critical: true},
	} {
		v := verdict.Decide(policy, found, process)
		fmt.Printf("%s: %s, by rule %q\n", process.Name, v.Action, v.Rule)
	}
	// Output:
	// malware.exe: kill, by rule "in a user's folder"
	// svchost.exe: suspend, by rule "all others"
	// csrss.exe: report, by rule "in a user's folder"
}

// A verdict says why.
func ExampleExplain() {
	policy := verdict.Always(verdict.Kill)
	steps, v := verdict.Explain(policy, verdict.Finding{Kind: verdict.KindModified, Signature: "Vmav.Modified.Code"}, verdict.Subject{PID: 2552})
	for _, s := range steps {
		fmt.Println(s.Rule, s.Matches, s.Why)
	}
	fmt.Println(v.Action, "by", v.Rule)
	// Output:
	// allow false [there are no allowlists]
	// --action kill false [its kind is modified, which a rule must name]
	// report by default
}
