package broker

import (
	"errors"
	"fmt"

	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/worker/wire"
)

// A worker reports which images it has looked at, so that the next scan of the same process
// can leave them out. The report concerns only its own guest. A worker that lies here gains
// nothing: it could as well call these images clean.

// looked passes on which images were looked at.
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

// about reports whether the job covers a process.
func (j *job) about(p introspect.Identity) bool {
	for i := range j.req.Focus {
		if j.req.Focus[i].ID == p {
			return true
		}
	}
	return j.req.Focus == nil
}
