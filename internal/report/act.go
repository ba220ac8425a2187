package report

import (
	"strings"
	"time"

	"vmav.dev/vmav/internal/verdict"
)

// Act is the audit record of something that was done to a guest and is no kill: a
// process was held, or the domain suspended.
type Act struct {
	Domain    string         `json:"domain"`
	Action    verdict.Action `json:"action"`           // verdict.Hold or verdict.Suspend
	Target    *Process       `json:"target,omitempty"` // of a hold
	Outcome   Outcome        `json:"outcome"`
	Reason    string         `json:"reason,omitempty"` // of any outcome but OutcomeHeld and OutcomeSuspended
	DryRun    bool           `json:"dry_run,omitempty"`
	Requested time.Time      `json:"requested"`
	Applied   *Milliseconds  `json:"applied_ms,omitempty"` // since the request
}

// Outcomes of an Act beside those of a Kill.
const (
	OutcomeHeld      Outcome = "held"      // no thread of it runs in user mode, until it is released
	OutcomeSuspended Outcome = "suspended" // libvirt says that the domain is paused
)

// String is the outcome with its reason, for people.
func (a *Act) String() string { return outcomeText(a.Outcome, a.Reason) }

func outcomeText(o Outcome, reason string) string {
	if reason == "" {
		return string(o)
	}
	return string(o) + ": " + reason
}

// Done tells whether what was to be done is known to have happened, or was only to be
// planned.
func (o Outcome) Done() bool {
	switch o {
	case OutcomeKilled, OutcomeExited, OutcomeHeld, OutcomeSuspended, OutcomePlanned:
		return true
	}
	return false
}

// Done tells whether what the verdict asks for is known to have happened.
func (f *Finding) Done() bool {
	word, _, _ := strings.Cut(f.Outcome, ":")
	return f.Verdict.Action == verdict.Report || Outcome(word).Done()
}
