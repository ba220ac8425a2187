package scan

import (
	"context"
	"slices"

	"vmav.dev/vmav/internal/introspect"
)

// Focused is one process that a scan is focused on, and what is known of it.
type Focused struct {
	ID      introspect.Identity // the scan leaves out a process that has ended or was replaced by another
	Parent  *introspect.Process // its parent (subject.Parent); nil if that is not known
	Program bool                // scan only its program
	Known   []ImageKey          // images that need not be scanned
}

// ImageKey tells an image that a process has mapped from others that it had mapped at the
// same address.
type ImageKey struct {
	Base, Size uint64
	Section    uint64 // address of the section's control area; 0 if none is known
}

// KeyOf returns the key of an image.
func KeyOf(m *introspect.Module) ImageKey {
	k := ImageKey{Base: m.Base, Size: m.Size}
	if v := m.VAD(); v != nil {
		k.Section = v.ControlArea()
	}
	return k
}

// focus lists the images that the scan is focused on. A process that cannot be read does
// not affect the others.
func (r *run) focus(ctx context.Context) ([]item, error) {
	var items []item
	for i := range r.req.Focus {
		f := &r.req.Focus[i]
		now, _ := r.guest.ProcessAt(f.ID.EPROCESS)
		if now.Identity() != f.ID || !now.Exited.IsZero() {
			continue
		}
		p := &now
		if f.Parent != nil {
			r.procs = append(r.procs, *f.Parent)
		}
		mods, _, problems, err := r.ranges(ctx, p)
		if err != nil {
			return nil, err
		}
		r.mappings.Add(p, mods)
		r.out.Processes++
		r.note(problems)
		known := make(map[ImageKey]bool, len(f.Known))
		for _, k := range f.Known {
			known[k] = true
		}
		// The program comes first, because most findings are about it.
		slices.SortStableFunc(mods, func(a, b introspect.Module) int { return isProgram(p, &b) - isProgram(p, &a) })
		for _, m := range mods {
			if slices.Contains(m.Flags, introspect.FlagUnmapped) || f.Program && isProgram(p, &m) == 0 || known[KeyOf(&m)] {
				continue
			}
			items = append(items, item{process: p, module: m})
		}
		if p.PEB != 0 && !f.Program {
			items = append(items, item{process: p, regions: true})
		}
	}
	return items, nil
}

// isProgram returns 1 if a module is the program of a process, and else 0.
func isProgram(p *introspect.Process, m *introspect.Module) int {
	if m.Base == p.SectionBase {
		return 1
	}
	return 0
}

// lookedAt reports that an image of a process was looked at, if the request asks for that.
func (r *run) lookedAt(it *item, whole bool) {
	if r.req.Looked && it.process != nil {
		r.on.Looked(it.process.Identity(), KeyOf(&it.module), whole)
	}
}
