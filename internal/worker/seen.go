package worker

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/sweep"
)

// A worker reports which images it has looked at, so that the next sweep of the same
// process need not. What it says holds for its own guest alone, as far as the broker is
// asked to note it: one that lies leaves out what it could call clean as well.

// seenSize is a report of one image: identity of the process, key of the image, 8 bytes
// each number, and whether all of it was seen.
const seenSize = 7*8 + 1

// maxSeen bounds the images of one sweep that are reported: a guest may have as many
// processes, but not the memory for as many images.
const maxSeen = 1 << 18

func appendSeen(b []byte, p introspect.Identity, m sweep.ImageKey, whole bool) []byte {
	for _, n := range []uint64{p.EPROCESS, p.PID, p.CreateTime, p.DTB, m.Base, m.Size, m.Section} {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	if whole {
		return append(b, 1)
	}
	return append(b, 0)
}

// parseSeen reads a report of seenSize bytes.
func parseSeen(b []byte) (p introspect.Identity, m sweep.ImageKey, whole bool, err error) {
	for i, n := range []*uint64{&p.EPROCESS, &p.PID, &p.CreateTime, &p.DTB, &m.Base, &m.Size, &m.Section} {
		*n = binary.LittleEndian.Uint64(b[8*i:])
	}
	if b[seenSize-1] > 1 {
		return p, m, false, fmt.Errorf("an image that was seen %d times", b[seenSize-1])
	}
	return p, m, b[seenSize-1] == 1, nil
}

// seen notes what was looked at.
func (v *served) seen(q frame) (frame, error) {
	if v.opt.Seen == nil || q.n == 0 || q.n%seenSize != 0 {
		return frame{}, fmt.Errorf("%d bytes of images that were seen", q.n)
	}
	v.mu.Lock()
	v.images += q.n / seenSize
	many := v.images > maxSeen
	v.mu.Unlock()
	if many {
		return frame{}, errors.New("more images than a guest has")
	}
	for b := append([]byte(nil), v.window[:q.n]...); len(b) > 0; b = b[seenSize:] {
		p, m, whole, err := parseSeen(b)
		if err != nil {
			return frame{}, err
		}
		if !v.about(p) {
			return frame{}, fmt.Errorf("an image of process %d, which its job is not about", p.PID)
		}
		v.opt.Seen(p, m, whole)
	}
	return frame{}, nil
}

// about tells whether the job is about a process.
func (s *session) about(p introspect.Identity) bool {
	for i := range s.opt.Focus {
		if s.opt.Focus[i].ID == p {
			return true
		}
	}
	return s.opt.Focus == nil
}

// sights collects what a sweep has looked at.
type sights struct {
	mu  sync.Mutex
	all []byte
}

// add is a sweep's Seen.
func (s *sights) add(p introspect.Identity, m sweep.ImageKey, whole bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.all) < maxSeen*seenSize {
		s.all = appendSeen(s.all, p, m, whole)
	}
}

// report tells the broker, as much at a time as fits.
func (s *sights) report(ls lanes) error {
	const most = windowSize / seenSize * seenSize
	for all := s.all; len(all) > 0; {
		n := min(len(all), most)
		if err := ls.ask(askSeen, func(l *lane) int { return copy(l.window, all[:n]) }, nil, nil); err != nil {
			return err
		}
		all = all[n:]
	}
	return nil
}
