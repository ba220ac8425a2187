package finding

// Outcome is what was seen to happen after a verdict. It is embedded where it is the
// outcome of something, so that its JSON is two members of that: "outcome" and "reason".
type Outcome struct {
	Code   Code   `json:"outcome"`
	Reason string `json:"reason,omitempty"` // in words; can hold text of the guest
}

// Code is the kind of an outcome.
type Code string

// Codes of outcomes.
const (
	OutcomeReported  Code = "reported"  // nothing was to be done but to say so
	OutcomeKilled    Code = "killed"    // the guest says so: exit status and time
	OutcomeExited    Code = "exited"    // the process had ended, or ended by itself meanwhile
	OutcomePending   Code = "pending"   // nothing could be done by the deadline, and nothing is under way any more
	OutcomeRefused   Code = "refused"   // it must not be done
	OutcomeFailed    Code = "failed"    // it was tried, and is not known to have worked
	OutcomeGone      Code = "gone"      // the guest went away
	OutcomePlanned   Code = "planned"   // a dry run: it would be tried
	OutcomeHeld      Code = "held"      // no thread of the process runs in user mode until it is released
	OutcomeSuspended Code = "suspended" // libvirt says that the domain is paused
)

// Text is the outcome for people: its code, with the reason where there is one.
func (o Outcome) Text() string {
	if o.Reason == "" {
		return string(o.Code)
	}
	return string(o.Code) + ": " + o.Reason
}

// Done tells whether what was to be done is known to have happened, or was only to be
// planned.
func (c Code) Done() bool {
	switch c {
	case OutcomeKilled, OutcomeExited, OutcomeHeld, OutcomeSuspended, OutcomePlanned:
		return true
	}
	return false
}
