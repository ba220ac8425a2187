package broker

import (
	"errors"
	"fmt"

	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/worker/wire"
)

// A worker reports which images it has looked at, so that the next scan of the same
// process need not. What it says holds for its own guest alone, as far as the broker is
// asked to note it: one that lies leaves out what it could call clean as well.

// looked tells of what was looked at.
func (v *laneServer) looked(q wire.Frame) (wire.Frame, error) {
	if !v.req.Looked || q.N == 0 || q.N%wire.LookedSize != 0 {
		return wire.Frame{}, fmt.Errorf("%d bytes of images that were seen", q.N)
	}
	v.mu.Lock()
	v.job.looked += q.N / wire.LookedSize
	many := v.job.looked > wire.MaxLooked
	v.mu.Unlock()
	if many {
		return wire.Frame{}, errors.New("more images than a guest has")
	}
	for b := append([]byte(nil), v.window[:q.N]...); len(b) > 0; b = b[wire.LookedSize:] {
		p, m, whole, err := wire.ParseLooked(b)
		if err != nil {
			return wire.Frame{}, err
		}
		if !v.about(p) {
			return wire.Frame{}, fmt.Errorf("an image of process %d, which its job is not about", p.PID)
		}
		v.on.Looked(p, m, whole)
	}
	return wire.Frame{}, nil
}

// about tells whether the job is about a process.
func (j *job) about(p introspect.Identity) bool {
	for i := range j.req.Focus {
		if j.req.Focus[i].ID == p {
			return true
		}
	}
	return j.req.Focus == nil
}
