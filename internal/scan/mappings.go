package scan

import (
	"context"

	"vmav.dev/vmav/internal/introspect"
)

// Mappings knows where each section of a guest is mapped. Add fills it. After that it may
// be read concurrently.
type Mappings struct {
	sections map[uint64][]mapping // by control area
	modules  map[uint64][]introspect.Module
}

type mapping struct {
	process *introspect.Process
	vad     *introspect.VAD
}

// NewMappings returns an empty index.
func NewMappings() *Mappings {
	return &Mappings{sections: make(map[uint64][]mapping), modules: make(map[uint64][]introspect.Module)}
}

// Add enters the modules of a process.
func (x *Mappings) Add(p *introspect.Process, mods []introspect.Module) {
	x.modules[p.EPROCESS] = mods
	for i := range mods {
		if v := mods[i].VAD(); v != nil && v.ControlArea() != 0 {
			x.sections[v.ControlArea()] = append(x.sections[v.ControlArea()], mapping{p, v})
		}
	}
}

// Survey enters the modules of all processes. It leaves out what cannot be read.
func Survey(ctx context.Context, g *introspect.Guest, procs []introspect.Process) (*Mappings, error) {
	x := NewMappings()
	for i := range procs {
		mods, _, err := g.Modules(ctx, &procs[i])
		if err != nil {
			return nil, err
		}
		x.Add(&procs[i], mods)
	}
	return x, nil
}

// of lists the mappings of the section of v at the same address.
func (x *Mappings) of(v *introspect.VAD) []mapping {
	all := x.sections[v.ControlArea()]
	for i := range all {
		if all[i].vad.Start != v.Start {
			var same []mapping
			for _, m := range all {
				if m.vad.Start == v.Start {
					same = append(same, m)
				}
			}
			return same
		}
	}
	return all
}
