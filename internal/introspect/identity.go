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

// Guards returns conditions that hold as long as id is a living process and not critical:
// the same id and creation time at the same place, the same DTB, and not ending. They are
// checked at the moment of an action, because anything read earlier may be outdated. For a
// 32-bit guest the error wraps ErrActions32.
func (g *Guest) Guards(id Identity) ([]source.Guard, error) {
	if !g.as.f.wide() {
		return nil, fmt.Errorf("guard pid %d: %w", id.PID, ErrActions32)
	}
	o := &g.off.Process
	var out []source.Guard
	add := func(off uint32, mask, value uint64) error {
		gpa, err := g.physical(id.EPROCESS + uint64(off))
		if err != nil {
			return fmt.Errorf("guard pid %d: %w", id.PID, err)
		}
		out = append(out, source.Guard{GPA: gpa, Mask: mask, Value: value & mask})
		return nil
	}
	// BreakOnTermination, ProcessExiting and ProcessDelete are bits of one word.
	var off uint32
	var mask uint64
	for _, f := range []winstruct.Field{o.Critical, o.Exiting, o.Delete} {
		at := (f.Offset + uint32(f.BitOffset/8)) &^ 7
		if f.BitCount != 1 || f.Name == "" || mask != 0 && at != off {
			continue
		}
		off = at
		mask |= 1 << (8*(f.Offset-at) + uint32(f.BitOffset))
	}
	err := errors.Join(add(o.CreateTime, ^uint64(0), id.CreateTime), add(o.PID, ^uint64(0), id.PID), add(o.DTB, pfnMask, id.DTB))
	if mask != 0 {
		err = errors.Join(err, add(off, mask, 0))
	} else {
		err = errors.Join(err, add(o.ExitTime, ^uint64(0), 0))
	}
	if err != nil {
		return nil, err
	}
	for _, gd := range out {
		if gd.GPA%8 != 0 {
			return nil, fmt.Errorf("guard pid %d: a field of its EPROCESS at %#x is not aligned", id.PID, id.EPROCESS)
		}
	}
	return out, nil
}

// physical returns the guest-physical address that a kernel address has now. Only a valid
// mapping counts: a page that Windows can take away at any time is no basis for an action.
func (g *Guest) physical(va uint64) (uint64, error) {
	m, err := g.as.Mapping(va)
	return m.GPA, err
}
