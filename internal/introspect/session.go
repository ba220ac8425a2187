package introspect

import (
	"context"
	"errors"

	"vmav.dev/vmav/internal/winstruct"
)

// opaqueSessionID is where the id lies in a session's object since Windows 11 24H2, as far as
// others have seen (volatility3, issue 1385). The symbols of that build leave the object's
// form out, so this offset is used only once the guest itself bears it out.
const opaqueSessionID = 8

// unprovenSession names that offset where the guest does not bear it out.
const unprovenSession = "_PSP_SESSION_SPACE.SessionId"

// errSessionUnknown reports a process in a session whose id nothing in memory tells.
var errSessionUnknown = errors.New("the session's object has an unknown form, and the process's own record of the id is not in memory")

// session returns the id of the session that a process belongs to, or -1 if it belongs to
// none. The kernel's record counts. Where its form is not known, the process's own does,
// which the process can change.
func (g *Guest) session(rec record, p *Process) (int32, error) {
	o := &g.off.Process
	as := g.space(p.DTB)
	live := p.Exited.IsZero()
	if o.Session != winstruct.Missing {
		at := rec.ptr(o.Session)
		if at == 0 {
			return -1, nil
		}
		if g.off.SessionID != winstruct.Missing {
			// Session space is mapped only in the processes of the session. A process that
			// has exited may have no page tables left.
			id, err := as.integer(at+uint64(g.off.SessionID), 4)
			switch {
			case err == nil:
				return int32(id), nil
			case live:
				return -1, err
			}
			return -1, nil
		}
	} else if p.PEB == 0 || g.off.PEB.SessionID == winstruct.Missing {
		return -1, nil
	}
	if live && p.PEB != 0 && g.off.PEB.SessionID != winstruct.Missing {
		id, err := as.integer(p.PEB+uint64(g.off.PEB.SessionID), 4)
		if err == nil {
			return int32(id), nil
		}
		if !errors.Is(err, ErrNotPresent) {
			return -1, err
		}
	}
	return -1, errSessionUnknown
}

// sessionProof holds the two records of a process's session against each other: that of the
// kernel and that of the process.
type sessionProof struct {
	tally
	other bool // a session other than 0 was seen: a field that is always zero proves nothing
}

// add looks at one process. Pages that are not in memory say nothing.
func (s *sessionProof) add(g *Guest, as *AddressSpace, rec record, peb uint64) {
	at := rec.ptr(g.off.Process.Session)
	if at == 0 || peb == 0 {
		return
	}
	b, err := as.integer(peb+uint64(g.off.PEB.SessionID), 4)
	if errors.Is(err, ErrNotPresent) {
		return
	}
	a, aerr := as.integer(at+uint64(g.off.SessionID), 4)
	s.tally.add(err == nil && aerr == nil && a == b)
	s.other = s.other || err == nil && aerr == nil && a == b && a != 0
}

// proveSession finds out whether the id lies where opaqueSessionID says, on a build whose
// profile does not tell. If the guest does not bear it out, it is not used.
func (g *Guest) proveSession(ctx context.Context) error {
	o := &g.off.Process
	if o.Session == winstruct.Missing || g.off.SessionID != winstruct.Missing {
		return nil
	}
	off := *g.off
	off.SessionID = opaqueSessionID
	trial := *g
	trial.off = &off
	var proof sessionProof
	rec := g.as.newRecord(o.Size)
	head := g.kernel.Base + g.off.Sym.ActiveProcessHead
	n := 0
	err := g.as.walkList(ctx, head, 0, maxProcesses, func(entry uint64) bool {
		if n++; g.as.Read(rec.b, entry-uint64(o.Links)) == nil && rec.u64(o.ExitTime) == 0 {
			proof.add(&trial, g.space(rec.ptr(o.DTB)), rec, rec.ptr(o.PEB))
		}
		return n < maxSamples
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err == nil && proof.proven(2) && proof.other {
		g.off = &off
		return nil
	}
	g.kernel.Unproven = append(g.kernel.Unproven, unprovenSession)
	return nil
}
