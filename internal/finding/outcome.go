package finding

// Outcome says what was seen to happen after a verdict. It is embedded in the records that
// have an outcome, so that its JSON is two members of theirs: "outcome" and "reason".
type Outcome struct {
	Code   Code   `json:"outcome"`
	Reason string `json:"reason,omitempty"` // in words; may contain text of the guest
}

// Code is the kind of an outcome.
type Code string

// Codes of outcomes.
const (
	OutcomeReported  Code = "reported"  // nothing was to be done except to report it
	OutcomeKilled    Code = "killed"    // the guest has the exit status and the time of the end
	OutcomeExited    Code = "exited"    // the process had ended before, or ended by itself
	OutcomePending   Code = "pending"   // nothing could be done by the deadline, and nothing is under way any longer
	OutcomeRefused   Code = "refused"   // it is not allowed, or not possible here
	OutcomeFailed    Code = "failed"    // it was tried and is not known to have worked
	OutcomeGone      Code = "gone"      // the guest went away
	OutcomePlanned   Code = "planned"   // a dry run; it would be tried
	OutcomeHeld      Code = "held"      // no thread of the process runs in user mode until it is released
	OutcomeSuspended Code = "suspended" // libvirt says that the domain is paused
)

// Text returns the outcome for people: its code, followed by the reason if there is one.
func (o Outcome) Text() string {
	if o.Reason == "" {
		return string(o.Code)
	}
	return string(o.Code) + ": " + o.Reason
}

// Done reports whether the action is known to have happened, or was only to be planned.
func (c Code) Done() bool {
	switch c {
	case OutcomeKilled, OutcomeExited, OutcomeHeld, OutcomeSuspended, OutcomePlanned:
		return true
	}
	return false
}
