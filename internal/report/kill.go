package report

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"
)

// Outcome is what became of a kill.
type Outcome string

// Outcomes.
const (
	OutcomeKilled  Outcome = "killed"  // the guest says so: exit status and time
	OutcomeExited  Outcome = "exited"  // it had ended, or ended by itself meanwhile
	OutcomePending Outcome = "pending" // nothing could be done by the deadline, and nothing is under way any more
	OutcomeRefused Outcome = "refused" // it must not be done
	OutcomeFailed  Outcome = "failed"  // it was tried, and the process is not known to have ended so
	OutcomeGone    Outcome = "gone"    // the guest went away
	OutcomePlanned Outcome = "planned" // a dry run: it would be tried
)

// NTStatus is a status of the guest's kernel; text in JSON.
type NTStatus uint32

func (s NTStatus) String() string { return fmt.Sprintf("0x%08x", uint32(s)) }

// MarshalText implements encoding.TextMarshaler.
func (s NTStatus) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *NTStatus) UnmarshalText(text []byte) error {
	v, err := strconv.ParseUint(string(text), 0, 32)
	*s = NTStatus(v)
	return err
}

// Milliseconds is a duration; a number of milliseconds in JSON.
type Milliseconds time.Duration

func (m Milliseconds) String() string {
	return fmt.Sprintf("%.1f ms", time.Duration(m).Seconds()*1000)
}

// MarshalJSON implements json.Marshaler.
func (m Milliseconds) MarshalJSON() ([]byte, error) {
	return json.Marshal(float64(time.Duration(m).Microseconds()) / 1000)
}

// UnmarshalJSON implements json.Unmarshaler.
func (m *Milliseconds) UnmarshalJSON(text []byte) error {
	var ms float64
	if err := json.Unmarshal(text, &ms); err != nil {
		return err
	}
	*m = Milliseconds(time.Duration(math.Round(ms*1000)) * time.Microsecond)
	return nil
}

// Ways to end a process.
const (
	MethodDirect    = "direct"    // a thread of its own was redirected
	MethodSurrogate = "surrogate" // a thread of a service made the calls
)

// Process is a process of the guest as a Kill names it. Text is guest-controlled.
type Process struct {
	PID      uint64    `json:"pid"`
	Name     string    `json:"name"`
	Path     string    `json:"path"`
	EPROCESS Address   `json:"eprocess"`
	DTB      Address   `json:"dtb"`
	Created  time.Time `json:"created"`
}

// Call is one system call that a surrogate made.
type Call struct {
	Name   string   `json:"name"`
	Status NTStatus `json:"status"`
}

// Service is what was done with a surrogate.
type Service struct {
	Process
	Thread  uint64 `json:"thread"` // id, as its TEB says
	Calls   []Call `json:"calls"`
	Error   string `json:"error,omitempty"`
	Context string `json:"context"` // "equal": the thread has all that it had; else what is known
}

// Kill is the audit record of one kill. It holds all that was done to the guest.
type Kill struct {
	Domain    string    `json:"domain"`
	Target    Process   `json:"target"`
	Outcome   Outcome   `json:"outcome"`
	Reason    string    `json:"reason,omitempty"` // of any outcome but OutcomeKilled
	DryRun    bool      `json:"dry_run,omitempty"`
	Method    string    `json:"method,omitempty"` // MethodDirect or MethodSurrogate
	Services  []Service `json:"surrogates,omitempty"`
	Plan      []string  `json:"plan,omitempty"` // of a dry run, and what speaks against a way
	Requested time.Time `json:"requested"`
	// Times since the request.
	Applied *Milliseconds `json:"applied_ms,omitempty"` // a thread was redirected, or NtTerminateProcess returned to the surrogate
	Dead    *Milliseconds `json:"dead_ms,omitempty"`    // its end was seen in the guest's memory
	// As the guest has them, once it has ended.
	ExitStatus *NTStatus  `json:"exit_status,omitempty"`
	Exited     *time.Time `json:"exited,omitempty"`
}

// String is the outcome with its reason, for people.
func (k *Kill) String() string { return outcomeText(k.Outcome, k.Reason) }

// Ended tells whether the guest itself says that the process has ended.
func (k *Kill) Ended() bool { return k.Outcome == OutcomeKilled || k.Outcome == OutcomeExited }

// KillColumns are the columns of a list of kills.
var KillColumns = []Column[Kill]{
	{Title: "DOMAIN", Text: func(k Kill) string { return k.Domain }},
	{Title: "PID", Text: func(k Kill) string { return strconv.FormatUint(k.Target.PID, 10) }, Right: true},
	{Title: "PROCESS", Text: func(k Kill) string { return k.Target.Name }},
	{Title: "OUTCOME", Text: func(k Kill) string { return string(k.Outcome) }},
	{Title: "METHOD", Text: func(k Kill) string { return k.Method }},
	{Title: "REASON", Text: func(k Kill) string { return k.Reason }},
}

// WriteKill writes a kill for people: what became of it in a line, and below what was
// done to whom.
func WriteKill(w io.Writer, k *Kill) error {
	p := printer{w: w}
	how := ""
	if k.Method != "" && !k.DryRun {
		how = " (" + k.Method
		if k.Applied != nil {
			how += fmt.Sprintf(", applied after %v", *k.Applied)
		}
		if k.Dead != nil {
			how += fmt.Sprintf(", dead after %v", *k.Dead)
		}
		if k.ExitStatus != nil {
			how += fmt.Sprintf(", exit status %v", *k.ExitStatus)
		}
		how += ")"
	}
	p.line("%s: %s[%d]: %s%s", Escape(k.Domain), Escape(k.Target.Name), k.Target.PID, Escape(k.String()), how)
	for _, s := range k.Services {
		var calls []string
		for _, c := range s.Calls {
			calls = append(calls, fmt.Sprintf("%s %v", c.Name, c.Status))
		}
		p.line("  surrogate %s[%d], thread %d: %s; context %s", Escape(s.Name), s.PID, s.Thread, strings.Join(calls, ", "), Escape(s.Context))
		if s.Error != "" {
			p.line("    %s", Escape(s.Error))
		}
	}
	for _, line := range k.Plan {
		p.line("  %s", Escape(line))
	}
	return p.err
}
