package verdict

import (
	"fmt"
	"strings"
)

// DefaultSurrogates are services of Windows that run as LocalSystem on every system.
// Most of them run several times, and each wakes up now and then.
func DefaultSurrogates() []string {
	return []string{`\Windows\System32\svchost.exe`, `\Windows\System32\spoolsv.exe`}
}

// Candidate is a process that might serve as a surrogate.
type Candidate struct {
	Subject
	Account     string // SID of its token's user
	Wow64       bool
	Protected   bool
	HasUserMode bool // it has a user address space
}

// localSystem is the account that may terminate any process that is not protected.
const localSystem = "S-1-5-18"

// Names tells whether the policy names the program of a process as a surrogate.
func (p Policy) Names(s Subject) bool {
	path := volumePath(s.Path)
	for _, name := range p.Surrogates {
		if strings.EqualFold(name, path) {
			return true
		}
	}
	return false
}

// Surrogate says why a process must not serve as a surrogate. It is "" if it may.
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
