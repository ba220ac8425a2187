package sweep

import (
	"context"
	"sync"

	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/pe"
)

// Mappings knows where each section of a guest is mapped. It is filled by Add and may
// be read concurrently afterwards.
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

// Survey enters the modules of all processes. What cannot be read is not there.
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

// of lists the mappings of the section that v maps, at the same address.
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

// filesBudget is how much of a guest's file cache is kept at a time, in bytes: one DLL
// is in a hundred processes.
const filesBudget = 256 << 20

// Files keeps what a guest's cache holds of the files that are mapped. It is safe for
// concurrent use and good for one sweep.
type Files struct {
	mu    sync.Mutex
	files map[uint64]*cachedFile // by FILE_OBJECT
	kept  int
}

// cachedFile is what is cached of one file. A nil one holds nothing.
type cachedFile struct {
	once  sync.Once
	size  uint64
	pages []pe.FilePage // ascending, not touching
}

// NewFiles returns an empty store.
func NewFiles() *Files { return &Files{files: make(map[uint64]*cachedFile)} }

// get returns what the guest has of the file behind a FILE_OBJECT, or nil. What cannot
// be read counts as not cached.
func (f *Files) get(ctx context.Context, g *introspect.Guest, file uint64) *cachedFile {
	if file == 0 {
		return nil
	}
	f.mu.Lock()
	c := f.files[file]
	if c == nil {
		if f.kept > filesBudget {
			clear(f.files)
			f.kept = 0
		}
		c = new(cachedFile)
		f.files[file] = c
	}
	f.mu.Unlock()
	c.once.Do(func() {
		got, err := g.CachedFile(ctx, file, maxImage)
		if err != nil || got == nil || got.Cached == 0 {
			return
		}
		c.fill(got)
		f.mu.Lock()
		f.kept += len(got.Data)
		f.mu.Unlock()
	})
	if c.size == 0 {
		return nil
	}
	return c
}

// fill takes the runs of pages that are there.
func (c *cachedFile) fill(got *introspect.FileCache) {
	c.size = got.Size
	for i := 0; i < len(got.Origins); i++ {
		if got.Origins[i] == introspect.PageAbsent {
			continue
		}
		j := i
		for j < len(got.Origins) && got.Origins[j] != introspect.PageAbsent {
			j++
		}
		end := min(uint64(j)*pe.PageSize, got.Size)
		c.pages = append(c.pages, pe.FilePage{Offset: uint64(i) * pe.PageSize, Data: got.Data[uint64(i)*pe.PageSize : end]})
		i = j
	}
}

// holds says whether n bytes from off on are cached.
func (c *cachedFile) holds(off, n uint64) bool {
	if c == nil {
		return false
	}
	for i := range c.pages {
		p := &c.pages[i]
		if p.Offset <= off && off+n <= p.Offset+uint64(len(p.Data)) {
			return true
		}
	}
	return false
}
