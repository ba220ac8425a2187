// Package subject describes a process of a guest to the policy, and to the guards that no
// policy overrides. Code that finds something in a process and code that acts on it must
// see the same description. So there is one function for both. The package reads no guest.
package subject

import (
	"slices"

	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/verdict"
)

// Of returns a process as a policy sees it, without its domain and its parent.
func Of(p *introspect.Process) verdict.Subject {
	has := func(flag string) bool { return slices.Contains(p.Flags, flag) }
	return verdict.Subject{PID: p.PID, Name: p.Name, Path: p.Path, Session: p.Session,
		Critical: has(introspect.FlagCritical), Exited: has(introspect.FlagExited),
		Hidden: has(introspect.FlagHidden), Inferred: has(introspect.FlagInferred)}
}

// Parent returns the process among procs that created p, or nil if it is not there. A
// process that was created after p is not its parent: it only has the parent's PID now.
func Parent(p *introspect.Process, procs []introspect.Process) (parent *introspect.Process) {
	for i := range procs {
		q := &procs[i]
		if q.PID == p.PPID && q.PID != 0 && !q.Created.After(p.Created) && (parent == nil || q.Created.After(parent.Created)) {
			parent = q
		}
	}
	return parent
}
