// Package subject says what a process of a guest is to the policy and to the guards that
// no policy overrides. Whoever finds something in a process and whoever acts on one must
// see the same, so that there is one function for both. It reads no guest.
package subject

import (
	"slices"

	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/verdict"
)

// Of is a process as a policy sees it, without its domain and its parent.
func Of(p *introspect.Process) verdict.Subject {
	has := func(flag string) bool { return slices.Contains(p.Flags, flag) }
	return verdict.Subject{PID: p.PID, Name: p.Name, Path: p.Path, Session: p.Session,
		Critical: has(introspect.FlagCritical), Exited: has(introspect.FlagExited),
		Hidden: has(introspect.FlagHidden), Inferred: has(introspect.FlagInferred)}
}

// Parent is the process among some that made p, or nil where it is not known any more: its
// id may be another's by now, one that was made later.
func Parent(p *introspect.Process, procs []introspect.Process) (parent *introspect.Process) {
	for i := range procs {
		q := &procs[i]
		if q.PID == p.PPID && q.PID != 0 && !q.Created.After(p.Created) && (parent == nil || q.Created.After(parent.Created)) {
			parent = q
		}
	}
	return parent
}
