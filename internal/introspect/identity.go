package introspect

import (
	"errors"
	"fmt"

	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/winstruct"
)

// ErrOtherProcess reports that an EPROCESS no longer belongs to the process it belonged to:
// Windows has freed it or used it for a new process.
var ErrOtherProcess = errors.New("the process object is another one now")

// ErrActions32 reports an action on a 32-bit guest. Such guests are only read.
var ErrActions32 = errors.New("actions in 32-bit guests are not supported")

// Identity distinguishes a process from every other process that ever ran in its guest.
// Windows reuses process ids and objects, but not both together with the creation time.
type Identity struct {
	EPROCESS   uint64
	PID        uint64
	CreateTime uint64 // FILETIME: units of 100 ns since 1601, UTC
	DTB        uint64 // without flag bits
}

// State is the part of an EPROCESS that changes while the process lives and ends.
type State struct {
	Critical   bool
	Exiting    bool   // its end has begun
	ExitTime   uint64 // 0 while it lives
	ExitStatus uint32 // NTSTATUS; meaningful once ExitTime is set
}

// Identify reads the identity and the state of the process whose EPROCESS is at a kernel
// address. Both come from one copy of the EPROCESS.
func (g *Guest) Identify(eprocess uint64) (Identity, State, error) {
	rec, err := g.as.readRecord(eprocess, g.off.Process.Size)
	if err != nil {
		return Identity{}, State{}, fmt.Errorf("read process at %#x: %w", eprocess, err)
	}
	o := &g.off.Process
	id := Identity{EPROCESS: eprocess, PID: rec.ptr(o.PID), CreateTime: rec.u64(o.CreateTime), DTB: rec.ptr(o.DTB) & g.as.f.root}
	st := State{Critical: rec.field(o.Critical) != 0, ExitTime: rec.u64(o.ExitTime), ExitStatus: rec.u32(o.ExitStatus)}
	st.Exiting = st.ExitTime != 0 || o.Exiting.Name != "" && rec.field(o.Exiting) != 0 || o.Delete.Name != "" && rec.field(o.Delete) != 0
	return id, st, nil
}

// Recheck reads the state of a process that was identified before. The error wraps
// ErrOtherProcess if the EPROCESS no longer belongs to that process.
func (g *Guest) Recheck(id Identity) (State, error) {
	now, st, err := g.Identify(id.EPROCESS)
	if err != nil {
		return State{}, err
	}
	if now.PID != id.PID || now.CreateTime != id.CreateTime {
		return State{}, fmt.Errorf("%w: at %#x is pid %d", ErrOtherProcess, id.EPROCESS, now.PID)
	}
	return st, nil
}

// Ended reports whether a process has ended or has begun to end. Its address space goes
// away then, so pages of it that could not be read are no gap in a scan. A process whose
// EPROCESS cannot be read counts as living.
func (g *Guest) Ended(id Identity) bool {
	st, err := g.Recheck(id)
	return errors.Is(err, ErrOtherProcess) || err == nil && st.Exiting
}

// Guards are conditions that hold as long as a process is the one that was meant, lives and
// is not critical. They are checked at the moment of an action, because anything read
// earlier may be outdated.
type Guards struct {
	Created source.Guard // its creation time is the same
	PID     source.Guard // its id is the same
	DTB     source.Guard // its directory table base is the same
	Alive   source.Guard // its end has not begun, and it is not critical
}

// Identity returns the guards that say that the process is the one that was meant, whether
// it lives or not.
func (g *Guards) Identity() []source.Guard { return []source.Guard{g.Created, g.PID, g.DTB} }

// All returns all of the guards.
func (g *Guards) All() []source.Guard { return append(g.Identity(), g.Alive) }

// Guards returns the guards of a process. For a 32-bit guest the error wraps ErrActions32.
func (g *Guest) Guards(id Identity) (*Guards, error) {
	if !g.as.f.wide() {
		return nil, fmt.Errorf("guard pid %d: %w", id.PID, ErrActions32)
	}
	o := &g.off.Process
	guard := func(off uint32, mask, value uint64) (source.Guard, error) {
		gpa, err := g.physical(id.EPROCESS + uint64(off))
		if err != nil {
			return source.Guard{}, fmt.Errorf("guard pid %d: %w", id.PID, err)
		}
		if gpa%8 != 0 {
			return source.Guard{}, fmt.Errorf("guard pid %d: a field of its EPROCESS at %#x is not aligned", id.PID, id.EPROCESS)
		}
		return source.Guard{GPA: gpa, Mask: mask, Value: value & mask}, nil
	}
	// BreakOnTermination, ProcessExiting and ProcessDelete are bits of one word.
	alive, mask := o.ExitTime, uint64(0)
	for _, f := range []winstruct.Field{o.Critical, o.Exiting, o.Delete} {
		at := (f.Offset + uint32(f.BitOffset/8)) &^ 7
		if f.BitCount != 1 || f.Name == "" || mask != 0 && at != alive {
			continue
		}
		alive = at
		mask |= 1 << (8*(f.Offset-at) + uint32(f.BitOffset))
	}
	if mask == 0 {
		mask = ^uint64(0)
	}
	var out Guards
	var errs [4]error
	out.Created, errs[0] = guard(o.CreateTime, ^uint64(0), id.CreateTime)
	out.PID, errs[1] = guard(o.PID, ^uint64(0), id.PID)
	out.DTB, errs[2] = guard(o.DTB, pfnMask, id.DTB)
	out.Alive, errs[3] = guard(alive, mask, 0)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	return &out, nil
}

// physical returns the guest-physical address that a kernel address has now. Only a valid
// mapping counts: a page that Windows can take away at any time is no basis for an action.
func (g *Guest) physical(va uint64) (uint64, error) {
	m, err := g.as.Mapping(va)
	return m.GPA, err
}
