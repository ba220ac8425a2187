package policy_test

import (
	"fmt"
	"log"
	"os"
	"path/filepath"

	"vmav.dev/vmav/internal/policy"
	"vmav.dev/vmav/internal/verdict"
)

// A policy is read strictly: each mistake in it is an error with its line and key.
func ExampleLoad() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "policy.toml")
	for _, text := range []string{
		"[[rule]]\nname = 'users'\nsession = 'user'\naction = 'kill'\n",
		"[[rule]]\nname = 'users'\nsession = 'user'\naction = 'kil'\n",
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			log.Fatal(err)
		}
		p, err := policy.Load(file, true)
		if err != nil {
			fmt.Println(err.Error()[len(dir)+1:])
			continue
		}
		v := verdict.Decide(p.Policy, verdict.Finding{Kind: verdict.KindSignature, Signature: "Win.Trojan.Agent-1"}, verdict.Subject{PID: 2552, Session: 1})
		fmt.Println(v.Action, "by", v.Rule)
	}
	// Output:
	// kill by users
	// policy.toml:4: rule[0].action: "kil": known are report, kill, hold and suspend
}
