package scan

import (
	"context"
	"sync"

	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/pe"
)

// filesBudget bounds how much of a guest's file cache is kept at a time, in bytes, because
// one DLL is in a hundred processes. sectionsBudget bounds the frames of sections that are
// kept, in pages.
const (
	filesBudget    = 256 << 20
	sectionsBudget = 2 << 20
)

// Files keeps what a guest's memory holds of the mapped files: where the pages of their
// sections lie, and what the guest's cache has of them in their on-disk form. It is safe
// for concurrent use and valid for one scan.
type Files struct {
	mu       sync.Mutex
	files    map[uint64]*cachedFile // by FILE_OBJECT
	kept     int                    // bytes
	sections map[sectionKey]*section
	pages    uint64 // of sections
}

// NewFiles returns an empty store.
func NewFiles() *Files {
	return &Files{files: make(map[uint64]*cachedFile), sections: make(map[sectionKey]*section)}
}

// cachedFile is what the guest's cache has of one file.
type cachedFile struct {
	found  sync.Once
	size   uint64
	frames []introspect.Frame // of its pages, up to the last one that is there

	copied  sync.Once
	pages   []pe.FilePage // in ascending order, with gaps between them
	copySum pageDigest    // of the pages as they were copied
	copyOK  bool

	digested  sync.Once
	sum       pageDigest // of the pages
	digestErr error
}

// get returns what the guest has of the file of a FILE_OBJECT. It returns nil if the guest
// has nothing or it cannot be read.
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
	c.found.Do(func() {
		size, frames, err := g.FileFrames(ctx, file, maxImage)
		if err != nil {
			return
		}
		c.size, c.frames = size, frames
		for i := range frames {
			if frames[i].Origin == introspect.PageDemandZero {
				frames[i].Origin = introspect.PageAbsent // a page of a file is never a demand-zero page
			}
		}
		f.keep(16 * len(frames))
	})
	if len(c.frames) == 0 {
		return nil
	}
	return c
}

func (f *Files) keep(n int) {
	f.mu.Lock()
	f.kept += n
	f.mu.Unlock()
}

// holds reports whether n bytes from offset off on are cached.
func (c *cachedFile) holds(off, n uint64) bool {
	if c == nil || off+n > c.size {
		return false
	}
	for page := off / pe.PageSize; page*pe.PageSize < off+n; page++ {
		if page >= uint64(len(c.frames)) || !c.frames[page].InMemory() {
			return false
		}
	}
	return true
}

// read copies the pages that are there, once in a scan. It digests them if d is not nil. It
// leaves out pages that cannot be read.
func (c *cachedFile) read(ctx context.Context, g *introspect.Guest, f *Files, d *digester) []pe.FilePage {
	if c == nil {
		return nil
	}
	c.copied.Do(func() {
		frames := append([]introspect.Frame(nil), c.frames...)
		data := make([]byte, len(frames)*pe.PageSize)
		if g.ReadFrames(ctx, data, frames) != nil {
			return
		}
		f.keep(len(data))
		if c.copyOK = d != nil; c.copyOK {
			c.copySum = d.file(c.size, frames, func(i int) pageDigest { return d.page(data[i*pe.PageSize : (i+1)*pe.PageSize]) })
		}
		for i := 0; i < len(frames); i++ {
			if !frames[i].InMemory() {
				continue
			}
			j := i
			for j < len(frames) && frames[j].InMemory() {
				j++
			}
			end := min(uint64(j)*pe.PageSize, c.size)
			c.pages = append(c.pages, pe.FilePage{Offset: uint64(i) * pe.PageSize, Data: data[uint64(i)*pe.PageSize : end]})
			i = j
		}
	})
	return c.pages
}

// sectionKey identifies everything that leads to a section's pages, its layout and its
// other mappings.
type sectionKey struct {
	introspect.SectionID
	start, pages uint64
}

// section is one section as it is mapped at one address, for all processes that map it
// there.
type section struct {
	found  sync.Once
	err    error
	frames []introspect.Frame // of its pages; fewer than are mapped if the section has fewer
	subs   []introspect.Subsection

	placed sync.Once
	home   bool // it is mapped at the address that its pages are relocated to

	looked sync.Once
	others []introspect.Frame // for each page, a private copy that some process has

	digested  sync.Once
	digests   []pageDigest // of the pages that are in memory
	digestErr error
}

// section returns the section behind a range.
func (f *Files) section(g *introspect.Guest, v *introspect.VAD) (*section, error) {
	key := sectionKey{v.Section(), v.Start, (v.End + 1 - v.Start) / pe.PageSize}
	f.mu.Lock()
	s := f.sections[key]
	if s == nil {
		if f.pages += key.pages; f.pages > sectionsBudget {
			clear(f.sections)
			f.pages = key.pages
		}
		s = new(section)
		f.sections[key] = s
	}
	f.mu.Unlock()
	s.found.Do(func() {
		frames := make([]introspect.Frame, key.pages)
		var n int
		if n, s.err = g.SectionFrames(v, frames); s.err != nil {
			return
		}
		s.frames = frames[:n]
		if subs, err := g.Subsections(v); err == nil {
			s.subs = subs
		}
	})
	return s, s.err
}

// forget drops the section behind a range, so that it is read again. More of it is in
// memory now.
func (f *Files) forget(v *introspect.VAD) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.sections, sectionKey{v.Section(), v.Start, (v.End + 1 - v.Start) / pe.PageSize})
}

// atHome reports whether the section's pages are relocated to the address where it is
// mapped. The header on its own first page says so. If not, a process has relocated its
// copies itself.
func (s *section) atHome(ctx context.Context, g *introspect.Guest, start uint64) bool {
	s.placed.Do(func() {
		var page [pe.PageSize]byte
		if len(s.frames) == 0 {
			return
		}
		first := [1]introspect.Frame{s.frames[0]}
		if g.ReadFrames(ctx, page[:], first[:]) != nil || first[0].Origin != introspect.PagePrototype {
			return
		}
		h, err := pe.ParseHeaders(page[:])
		s.home = err == nil && h.ImageBase == start
	})
	return s.home
}

// elsewhere finds private copies of the section's pages, in processes that map it at the
// same address. It leaves out what cannot be read.
func (s *section) elsewhere(ctx context.Context, g *introspect.Guest, x *Mappings, v *introspect.VAD) []introspect.Frame {
	s.looked.Do(func() {
		n := (v.End + 1 - v.Start) / pe.PageSize
		s.others = make([]introspect.Frame, n)
		own := make([]introspect.Frame, n)
		others := x.of(v)
		for _, o := range others[:min(len(others), maxOthers)] {
			if o.vad.Start != v.Start || o.vad.Section() != v.Section() || g.ImageFrames(ctx, o.process, v.Start, own, v.Start, s.frames) != nil {
				continue
			}
			for i, f := range own {
				if f.Origin == introspect.PagePrivate && !s.others[i].InMemory() {
					s.others[i] = f
				}
			}
		}
	})
	return s.others
}
