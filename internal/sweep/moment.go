package sweep

import (
	"context"
	"time"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/source"
)

// A guest that runs starts and ends processes while it is swept. One that is being made is
// in the table of ids before its memory is there, one that ends loses it before it is off
// the list. What could not be read of such a process is no gap: the sweep looks at it once
// more, and passes over one that has ended.

// moment is how long a sweep waits before it looks once more, and moments how often it does.
const (
	moment  = 50 * time.Millisecond
	moments = 20
)

// trouble is something of one process that could not be read.
type trouble struct {
	process introspect.Identity
	finding.Unread
}

// failIn notes an error that is about one process, nil for none. The caller does not hold
// the lock.
func (s *sweep) failIn(p *introspect.Process, what string, err error) {
	var id introspect.Identity
	if p != nil {
		id = p.Identity()
	}
	s.note([]introspect.Problem{{What: what, Err: err, Process: id}})
}

// note notes what could not be read.
func (s *sweep) note(problems []introspect.Problem) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range problems {
		switch {
		case p.Process == introspect.Identity{}:
			s.out.Fail(p.What, p.Err)
		case len(s.troubles) < finding.MaxErrors:
			s.troubles = append(s.troubles, trouble{p.Process, finding.Unread{What: p.What, Error: p.Err.Error()}})
		}
	}
}

// settle makes the troubles errors, but for those of processes that have ended. These it
// counts.
func (s *sweep) settle() {
	if len(s.troubles) == 0 {
		return
	}
	now := s.now()
	ended := make(map[introspect.Identity]bool)
	for _, t := range s.troubles {
		over, known := ended[t.process]
		if !known {
			over = now.Ended(t.process)
			ended[t.process] = over
			if over {
				s.out.Ended++
			}
		}
		if !over && len(s.out.Errors) < finding.MaxErrors {
			s.out.Errors = append(s.out.Errors, t.Unread)
		}
	}
	s.troubles = nil
}

// now is the guest read past what the source keeps.
func (s *sweep) now() *introspect.Guest { return s.guest.Through(source.Uncached(s.target.Source)) }

// again waits a moment before something is looked at once more. False means that it is not
// worth it: the guest stands still, or the sweep has waited often enough.
func (s *sweep) again(ctx context.Context) bool {
	if s.target.State == StateImage || s.target.Paused != nil && s.target.Paused() || s.waits == moments {
		return false
	}
	s.waits++
	select {
	case <-ctx.Done():
		return false
	case <-time.After(moment):
		return true
	}
}

// processes lists the processes of the guest, once more where that had problems.
func (s *sweep) processes(ctx context.Context) ([]introspect.Process, []introspect.Problem, error) {
	procs, problems, err := s.guest.Processes(ctx)
	if err != nil || len(problems) == 0 || !s.again(ctx) {
		return procs, problems, err
	}
	if more, fewer, err := s.now().Processes(ctx); err == nil && len(fewer) < len(problems) {
		return more, fewer, nil
	}
	return procs, problems, ctx.Err()
}

// ranges lists the images and the address space of a process, once more where that had
// problems. The process is then as it is now.
func (s *sweep) ranges(ctx context.Context, p *introspect.Process) ([]introspect.Module, []introspect.VAD, []introspect.Problem, error) {
	mods, vads, problems, err := s.guest.ModulesAndVADs(ctx, p)
	if err != nil || len(problems) == 0 || !s.again(ctx) {
		return mods, vads, problems, err
	}
	now := s.now()
	if now.Ended(p.Identity()) {
		return mods, vads, problems, nil // settle passes them over
	}
	again, _ := now.ProcessAt(p.EPROCESS)
	p.PEB, p.PEB32, p.Wow64, p.CommandLine, p.Path = again.PEB, again.PEB32, again.Wow64, again.CommandLine, again.Path
	return now.ModulesAndVADs(ctx, p)
}
