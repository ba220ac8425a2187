package sweep

import (
	"context"
	"slices"

	"vmav.dev/vmav/internal/introspect"
)

// Focused is one process that a sweep is focused on, and what is known of it. It is data,
// which means the same to a sweep in another process.
type Focused struct {
	ID      introspect.Identity // who has ended meanwhile, or is another one, is passed over
	Parent  *introspect.Process // that made it (Parent), nil where that is not known
	Program bool                // nothing but its program
	Known   []ImageKey          // images that need not be looked at
}

// ImageKey tells an image that a process has mapped from others that it had mapped there.
type ImageKey struct {
	Base, Size uint64
	Section    uint64 // address of the section's control area, 0 where none is known
}

// KeyOf is the key of an image.
func KeyOf(m *introspect.Module) ImageKey {
	k := ImageKey{Base: m.Base, Size: m.Size}
	if v := m.VAD(); v != nil {
		k.Section = v.ControlArea()
	}
	return k
}

// focus lists the images that the sweep is focused on. One process that cannot be read
// costs itself only.
func (s *sweep) focus(ctx context.Context) ([]job, error) {
	var jobs []job
	for i := range s.opt.Focus {
		f := &s.opt.Focus[i]
		now, _ := s.guest.ProcessAt(f.ID.EPROCESS)
		if now.Identity() != f.ID || !now.Exited.IsZero() {
			continue
		}
		p := &now
		if f.Parent != nil {
			s.procs = append(s.procs, *f.Parent)
		}
		mods, _, problems, err := s.ranges(ctx, p)
		if err != nil {
			return nil, err
		}
		s.mappings.Add(p, mods)
		s.out.Processes++
		s.note(problems)
		known := make(map[ImageKey]bool, len(f.Known))
		for _, k := range f.Known {
			known[k] = true
		}
		// The program first: it is what most findings are about.
		slices.SortStableFunc(mods, func(a, b introspect.Module) int { return isProgram(p, &b) - isProgram(p, &a) })
		for _, m := range mods {
			if slices.Contains(m.Flags, introspect.FlagUnmapped) || f.Program && isProgram(p, &m) == 0 || known[KeyOf(&m)] {
				continue
			}
			jobs = append(jobs, job{process: p, module: m})
		}
		if p.PEB != 0 && !f.Program {
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

// lookedAt tells who wants to know of an image of a process.
func (s *sweep) lookedAt(j *job, whole bool) {
	if s.opt.Seen != nil && j.process != nil {
		s.opt.Seen(j.process.Identity(), KeyOf(&j.module), whole)
	}
}

// pace holds the sweep back as its caller says.
func (s *sweep) pace(ctx context.Context) error {
	if s.opt.Pace == nil {
		return nil
	}
	return s.opt.Pace(ctx)
}
