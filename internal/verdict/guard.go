package verdict

import (
	"fmt"
	"strings"
)

// system are the names of programs that Windows cannot do without. Their critical flag
// is not enough, because it is memory that a rootkit can change.
var system = map[string]bool{"csrss.exe": true, "smss.exe": true, "wininit.exe": true, "winlogon.exe": true,
	"services.exe": true, "lsass.exe": true, "lsm.exe": true, "registry": true, "memory compression": true, "system": true, "secure system": true}

// Guarded says why an action must not be carried out on a process. It is "" if the
// action may be.
//
// Hold has the guards of kill. A held process keeps its locks, so Windows hangs if a
// critical process is held as surely as it stops if that process ends. Both write into
// the guest, and an inferred profile is not safe enough for that.
//
// Suspend writes nothing, and it stops every process, also critical ones and drivers. So
// it is left for these. Its only guard is for a process that has exited, because then
// there is nothing to stop.
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

// PageIn says why a process must not be made to read in pages of its files. It is "" if
// it may be. If such a read fails, a thread of the process gets an exception, so a
// process that must not end is refused. A hidden process is refused because it does not
// run as others do.
func PageIn(s Subject) string {
	if s.Hidden {
		return "it is hidden"
	}
	return Guard(s)
}

// Guard says why a process must not be killed or held. It is "" if it may be.
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
