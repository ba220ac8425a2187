// Package verdict decides what is done about a finding. It is pure: it knows the
// finding and the policy and nothing else, and imports no other package of the
// project.
//
// Guards stand over every policy. A process whose end would stop or cripple Windows
// is never killed, whatever a policy or an option says.
package verdict

import (
	"fmt"
	"strings"
)

// Action is what is to be done to the guest.
type Action string

// Actions.
const (
	Report Action = "report" // tell, and touch nothing
	Kill   Action = "kill"   // have the guest terminate the process
)

// ParseAction reads an action's name.
func ParseAction(s string) (Action, error) {
	switch a := Action(s); a {
	case Report, Kill:
		return a, nil
	}
	return "", fmt.Errorf("action %q: known are report and kill", s)
}

// Subject is the process that a finding is about.
type Subject struct {
	PID      uint64
	Name     string // ImageFileName
	Path     string
	Critical bool // Windows stops when it ends
	Exited   bool
	Hidden   bool
	Kernel   bool // a driver, or the kernel itself
	Inferred bool // the profile that it was read with does not fit its build exactly
}

// Policy is what the operator asked for.
type Policy struct {
	Action Action // "" means Report
	// Surrogates are the programs whose processes may carry out the end of another
	// one, which never runs itself: paths from the root of the guest's volume, case
	// aside. None may where it is empty.
	Surrogates []string
}

// DefaultSurrogates are services of Windows that run as LocalSystem on every system,
// most of them several times, and now and then have something to do.
func DefaultSurrogates() []string {
	return []string{`\Windows\System32\svchost.exe`, `\Windows\System32\spoolsv.exe`}
}

// Candidate is a process that might serve as a surrogate.
type Candidate struct {
	Subject
	Account     string // SID of its token's user
	Session     int32
	Wow64       bool
	Protected   bool
	HasUserMode bool // it has a user address space
}

// localSystem is the account that may terminate any process that is not protected.
const localSystem = "S-1-5-18"

// Names tells whether the policy names a process's program as a surrogate.
func (p Policy) Names(s Subject) bool {
	path := volumePath(s.Path)
	for _, name := range p.Surrogates {
		if strings.EqualFold(name, path) {
			return true
		}
	}
	return false
}

// Surrogate says why a process must not serve as a surrogate, or "" where it may.
func (p Policy) Surrogate(c Candidate) string {
	switch {
	case !p.Names(c.Subject):
		return "the policy does not name its program"
	case !c.HasUserMode:
		return "it has no user mode"
	case c.Wow64:
		return "it is a 32-bit process"
	case c.Protected:
		return "it is a protected process"
	case c.Hidden:
		return "it is hidden"
	case c.Session != 0:
		return fmt.Sprintf("it runs in session %d", c.Session)
	case c.Account == "":
		return "its account is not known"
	case c.Account != localSystem:
		return fmt.Sprintf("it runs as %s, not as LocalSystem", c.Account)
	}
	return Guard(c.Subject)
}

// volumePath is an NT path without its volume: \Windows\x of
// \Device\HarddiskVolume2\Windows\x. Any other form is not taken.
func volumePath(path string) string {
	rest, ok := strings.CutPrefix(path, `\Device\HarddiskVolume`)
	if !ok {
		return ""
	}
	at := strings.IndexByte(rest, '\\')
	if at < 1 || strings.Trim(rest[:at], "0123456789") != "" {
		return ""
	}
	return rest[at:]
}

// Verdict is what was decided, and why.
type Verdict struct {
	Action Action `json:"action"`
	Reason string `json:"reason"`
}

// system are programs that Windows cannot do without, by name: their critical flag
// is memory that a rootkit may have changed.
var system = map[string]bool{"csrss.exe": true, "smss.exe": true, "wininit.exe": true, "winlogon.exe": true,
	"services.exe": true, "lsass.exe": true, "lsm.exe": true, "registry": true, "memory compression": true, "system": true, "secure system": true}

// Decide applies a policy to a subject.
func Decide(p Policy, s Subject) Verdict {
	if p.Action != Kill {
		return Verdict{Report, "policy"}
	}
	if why := Guard(s); why != "" {
		return Verdict{Report, "guarded: " + why}
	}
	return Verdict{Kill, "policy"}
}

// Modified is the verdict on code that differs from its file, whatever the policy: so
// do hooks of rootkits, and those of debuggers, shims and other scanners.
func Modified() Verdict {
	return Verdict{Report, "modified code is reported only: it may have been modified with good reason"}
}

// Guard says why a process must not be killed, or "" where nothing speaks against
// it.
func Guard(s Subject) string {
	switch {
	case s.Kernel:
		return "it is a driver, not a process"
	case s.PID == 0 || s.PID == 4:
		return "it is the System process"
	case s.PID%4 != 0:
		return fmt.Sprintf("%d is no process id of Windows", s.PID)
	case s.Critical:
		return "it is a critical process: Windows stops when it ends"
	case system[strings.ToLower(s.Name)]:
		return "it bears the name of a system process"
	case s.Exited:
		return "it has exited"
	case s.Inferred:
		return "its profile is inferred"
	}
	return ""
}
