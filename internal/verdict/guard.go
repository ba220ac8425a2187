package verdict

import (
	"fmt"
	"strings"
)

// system are programs that Windows cannot do without, by name: their critical flag
// is memory that a rootkit may have changed.
var system = map[string]bool{"csrss.exe": true, "smss.exe": true, "wininit.exe": true, "winlogon.exe": true,
	"services.exe": true, "lsass.exe": true, "lsm.exe": true, "registry": true, "memory compression": true, "system": true, "secure system": true}

// Guarded says why an action must not be carried out on a process, or "" where nothing
// speaks against it.
//
// A held process stands still with all the locks that it has, so that what is guarded
// against kill is guarded against hold: Windows hangs with its critical processes held
// as surely as it stops with them gone. Both write into the guest, where an inferred
// profile is no ground to.
//
// Suspend writes nothing and stops every process alike, critical ones and drivers
// included; it is what is left for these. It only must not come too late: there is
// nothing to stop in a process that has exited.
func Guarded(a Action, s Subject) string {
	switch a {
	case Kill, Hold:
		return Guard(s)
	case Suspend:
		if s.Exited && !s.Kernel {
			return "it has exited"
		}
	}
	return ""
}

// PageIn says why a process must not be asked to have pages of its files read in, or ""
// where it may: where that fails a thread of it gets an exception, so it must not be one
// that must not end; and one that is hidden does not run as others do.
func PageIn(s Subject) string {
	if s.Hidden {
		return "it is hidden"
	}
	return Guard(s)
}

// Guard says why a process must not be killed or held, or "" where nothing speaks
// against it.
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
