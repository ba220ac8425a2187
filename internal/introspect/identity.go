package introspect

import (
	"errors"
	"fmt"

	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/winstruct"
)

// ErrOtherProcess reports an EPROCESS that is no longer the process it was: Windows has
// freed it, or made another process of it.
var ErrOtherProcess = errors.New("the process object is another one now")

// ErrActions32 reports a 32-bit guest, which is read and not written to.
var ErrActions32 = errors.New("actions in 32-bit guests are not supported")

// Identity tells a process from every other that ever was in its guest: its object, its
// id and when it was made. Pids and objects are used again, all three together are not.
type Identity struct {
	EPROCESS   uint64
	PID        uint64
	CreateTime uint64 // as Windows has it: 100 ns since 1601
	DTB        uint64 // without flag bits
}

// State is what changes over the life of a process.
type State struct {
	Critical   bool
	Exiting    bool   // its end has begun
	ExitTime   uint64 // 0 while it lives
	ExitStatus uint32 // NTSTATUS; meaningful once ExitTime is set
}

// Identify reads the identity and the state of the process at an EPROCESS, from one copy.
func (g *Guest) Identify(eprocess uint64) (Identity, State, error) {
	rec, err := g.as.record(eprocess, g.off.Process.Size)
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
// ErrOtherProcess where the object is not that process any more.
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

// Ended tells whether a process is no more, or its end has begun: its address space goes
// away then, and what could not be read of it is no gap in what is known of the guest. A
// process whose object cannot be read has not ended, for all that is known.
func (g *Guest) Ended(id Identity) bool {
	st, err := g.Recheck(id)
	return errors.Is(err, ErrOtherProcess) || err == nil && st.Exiting
}

// Guards are conditions that hold while id is a living process that is not critical:
// the same id and creation time at the same place, the same DTB, its end not begun.
// They are for the moment of an action, when nothing that was read before counts.
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

// physical is where a kernel address lies in guest-physical memory now. Only a valid
// mapping counts: a page that can be taken away is no ground to act on.
func (g *Guest) physical(va uint64) (uint64, error) {
	m, err := g.as.Mapping(va)
	return m.GPA, err
}
