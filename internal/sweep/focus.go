package sweep

import (
	"context"
	"slices"

	"vmav.dev/vmav/internal/introspect"
)

// Focus narrows a sweep to what is new in a guest that was swept before.
type Focus struct {
	// Guest is the guest, found before, so that its kernel need not be looked for again;
	// nil to look. Its source is the Target's, or one that reads the same.
	Guest *introspect.Guest
	// Processes are all that is looked into, unless nil; not the drivers.
	Processes []introspect.Process
	// Others are the guest's processes as they were a moment ago: a new one's parent is one
	// of them.
	Others []introspect.Process
	// Known tells which images need not be looked at; nil for none.
	Known func(p *introspect.Process, m *introspect.Module) bool
	// Seen is told of each image that was looked at, and whether all of its file was in
	// memory and the engine read it; nil for nobody. It is called concurrently.
	Seen func(p *introspect.Process, m *introspect.Module, whole bool)
}

// focus lists the images that the sweep is focused on. One process that cannot be read
// costs itself only.
func (s *sweep) focus(ctx context.Context) ([]job, error) {
	f := s.opt.Focus
	s.procs = f.Others
	var jobs []job
	for i := range f.Processes {
		p := &f.Processes[i]
		mods, problems, err := s.guest.Modules(ctx, p)
		if err != nil {
			return nil, err
		}
		s.mappings.Add(p, mods)
		s.out.Processes++
		for _, pr := range problems {
			s.fail(pr.What, pr.Err)
		}
		// The program first: it is what most findings are about.
		slices.SortStableFunc(mods, func(a, b introspect.Module) int { return isProgram(p, &b) - isProgram(p, &a) })
		for _, m := range mods {
			if slices.Contains(m.Flags, introspect.FlagUnmapped) || f.Known != nil && f.Known(p, &m) {
				continue
			}
			jobs = append(jobs, job{process: p, module: m})
		}
		if p.PEB != 0 && p.Exited.IsZero() {
			jobs = append(jobs, job{process: p, regions: true})
		}
	}
	return jobs, nil
}

func isProgram(p *introspect.Process, m *introspect.Module) int {
	if m.Base == p.SectionBase {
		return 1
	}
	return 0
}

// lookedAt tells the focus of an image.
func (s *sweep) lookedAt(j *job, whole bool) {
	if f := s.opt.Focus; f != nil && f.Seen != nil && j.process != nil {
		f.Seen(j.process, &j.module, whole)
	}
}

// pace holds the sweep back as its caller says.
func (s *sweep) pace(ctx context.Context) error {
	if s.opt.Pace == nil {
		return nil
	}
	return s.opt.Pace(ctx)
}
