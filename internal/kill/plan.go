package kill

import (
	"context"
	"fmt"

	"vmav.dev/vmav/internal/finding"
)

// plan verifies everything that a kill would rely on, and says what it would do. It touches
// nothing.
func (k *attempt) plan(ctx context.Context) {
	say := func(format string, args ...any) { k.rec.Plan = append(k.rec.Plan, fmt.Sprintf(format, args...)) }
	lib, err := k.library(ctx)
	if err != nil {
		k.fail(finding.OutcomeFailed, "", err)
		return
	}
	ways := 0
	if e, _, err := k.targetEntry(ctx, lib); err != nil {
		say("not through a thread of its own: %v", err)
	} else {
		ways++
		k.rec.Method = finding.MethodDirect
		say("redirect a thread of it to %s at %#x (system call %#x), exit status %v", ntTerminateProcess, e.va, e.number, Status)
	}
	if len(k.opt.Policy.Surrogates) == 0 {
		say("no surrogate: they are not allowed")
	} else {
		var excuses []string
		cands, err := k.candidates(ctx, nil, lib, func(why string) { excuses = append(excuses, why) })
		if err != nil {
			excuses = append(excuses, err.Error())
		}
		for _, c := range cands {
			say("else by surrogate %s[%d], parked at %#x", c.p.Name, c.p.PID, c.park)
		}
		if len(excuses) > 0 {
			say("no surrogates: %s", reasons(excuses))
		}
		if ways == 0 && len(cands) > 0 {
			k.rec.Method = finding.MethodSurrogate
		}
		ways += len(cands)
	}
	if ways == 0 {
		k.end(finding.OutcomeRefused, "there is no way to end it")
		return
	}
	k.rec.Code = finding.OutcomePlanned
}
