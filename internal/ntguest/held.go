package ntguest

// Held says what the laid-out memory has of one image of one process: the truth for tests
// of what can be rebuilt. Slices over pages have one element for each page.
type Held struct {
	File      []byte // the file on the test host
	Shared    []bool // pages of the section that are in memory
	Written   []bool // pages that the process has a copy of its own of, wherever that is
	Own       []bool // those of them that are in memory
	Elsewhere []bool // pages that another process has a copy of its own of in memory
	Cached    []bool // pages of the file, 4 KiB each, in the guest's cache; nil without Options.FileCache
	Writable  []bool // pages of writable sections
}

// Held returns what memory has of the image at base in the process with an id.
func (m *Machine) Held(pid, base uint64) (h Held, ok bool) {
	im := m.b.imageAt(pid, base)
	if im == nil {
		return h, false
	}
	pages := len(im.content) / pageSize
	h = Held{File: im.file.data, Shared: make([]bool, pages), Written: make([]bool, pages), Own: make([]bool, pages),
		Elsewhere: make([]bool, pages), Cached: im.cached, Writable: make([]bool, pages)}
	for i := range pages {
		h.Shared[i] = im.frames[i] != 0
		h.Writable[i] = im.file.protAt(uint64(i)) >= mmReadWrite && im.file.protAt(uint64(i)) < mmNoAccess
		for _, p := range m.b.procs {
			if p.user == nil || m.b.imageAt(p.pid, base) != im {
				continue
			}
			here, written := p.user.own[base+uint64(i)*pageSize]
			if p.pid == pid {
				h.Written[i], h.Own[i] = written, here
			} else {
				h.Elsewhere[i] = h.Elsewhere[i] || here
			}
		}
	}
	return h, true
}

// HeldDriver returns the same for the driver at base. A driver's pages are not shared
// through a section: those in memory are in Own.
func (m *Machine) HeldDriver(base uint64) (h Held, ok bool) {
	for _, d := range m.b.drivers {
		if d.base != base || d.file == nil {
			continue
		}
		pages := d.size / pageSize
		none := make([]bool, pages)
		h = Held{File: d.file.data, Shared: none, Written: none, Own: d.held, Elsewhere: none, Writable: make([]bool, pages)}
		if h.Own == nil {
			h.Own = make([]bool, pages)
			for i := range h.Own {
				h.Own[i] = true
			}
		}
		for i := range h.Writable {
			prot := d.file.protAt(uint64(i))
			h.Writable[i] = prot >= mmReadWrite && prot < mmNoAccess
		}
		return h, true
	}
	return h, false
}

// imageAt finds the image that a process has mapped at base.
func (b *builder) imageAt(pid, base uint64) *image {
	for _, p := range b.procs {
		if p.pid != pid || p.user == nil {
			continue
		}
		for _, v := range p.user.vads {
			if v.image != nil && v.start == base {
				return v.image
			}
		}
	}
	return nil
}
