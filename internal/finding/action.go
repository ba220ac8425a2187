package finding

import (
	"time"

	"vmav.dev/vmav/internal/verdict"
)

// Ways to end a process.
const (
	MethodDirect    = "direct"    // a thread of its own was redirected
	MethodSurrogate = "surrogate" // a thread of a service made the calls
)

// Process identifies a process of the guest that something was done to. It holds what the
// process was at that time. The texts come from the guest.
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

// Surrogate records what was done with a service of the guest that ended the target for
// vmav.
type Surrogate struct {
	Process
	Thread  uint64 `json:"thread"` // id, as its TEB says
	Calls   []Call `json:"calls"`
	Error   string `json:"error,omitempty"`
	Context string `json:"context"` // "equal" if the thread has its whole context back; else what is known of it
}

// Kill is the audit record of one kill. It holds everything that was done to the guest.
// Reason is empty if Code is OutcomeKilled.
type Kill struct {
	Domain string  `json:"domain"`
	Target Process `json:"target"`
	Outcome
	DryRun     bool        `json:"dry_run,omitempty"`
	Method     string      `json:"method,omitempty"` // MethodDirect or MethodSurrogate
	Surrogates []Surrogate `json:"surrogates,omitempty"`
	Plan       []string    `json:"plan,omitempty"` // of a dry run: the ways to end the process, and why others are not possible
	Requested  time.Time   `json:"requested"`
	// Times since the request.
	Applied *Milliseconds `json:"applied_ms,omitempty"` // until a thread was redirected, or NtTerminateProcess returned to the surrogate
	Dead    *Milliseconds `json:"dead_ms,omitempty"`    // until its end was seen in the guest's memory
	// What the guest records of the end; nil until the process has ended.
	ExitStatus *NTStatus  `json:"exit_status,omitempty"`
	Exited     *time.Time `json:"exited,omitempty"`
}

// Ended reports whether the guest itself says that the process has ended.
func (k *Kill) Ended() bool { return k.Code == OutcomeKilled || k.Code == OutcomeExited }

// Act is the audit record of an action on a guest that is not a kill: a process was held,
// or the domain was suspended. Reason is empty if Code is OutcomeHeld or OutcomeSuspended.
type Act struct {
	Domain string         `json:"domain"`
	Action verdict.Action `json:"action"`           // verdict.Hold or verdict.Suspend
	Target *Process       `json:"target,omitempty"` // of a hold
	Outcome
	DryRun    bool          `json:"dry_run,omitempty"`
	Requested time.Time     `json:"requested"`
	Applied   *Milliseconds `json:"applied_ms,omitempty"` // since the request
}
