package scan

import (
	"context"
	"fmt"

	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/pagein"
	"vmav.dev/vmav/internal/pe"
)

// maxImage bounds one image, and one file in the guest's cache, in bytes.
const maxImage = 256 << 20

// maxOthers bounds the other processes that are searched for a page.
const maxOthers = 256

// origins translates where a page was found into the terms of package pe.
var origins = map[introspect.PageOrigin]pe.Origin{
	introspect.PageAbsent: pe.Absent, introspect.PageResident: pe.Resident, introspect.PageTransition: pe.Transition,
	introspect.PagePrototype: pe.Prototype, introspect.PageDemandZero: pe.DemandZero,
	introspect.PagePrivate: pe.Private, introspect.PageStandIn: pe.Prototype,
}

// Copier copies images out of a guest, with everything that the guest's memory holds of
// their files. It reuses its buffers and is for one goroutine.
type Copier struct {
	guest    *introspect.Guest
	mappings *Mappings
	files    *Files
	pager    *pagein.Pager
	digester *digester // nil if images are not to be recognised

	mem     []byte
	origins []introspect.PageOrigin
	frames  []introspect.Frame
	pages   []pe.Origin
	private []introspect.Frame
	index   []int
	shared  []byte
	run     []pe.SharedPage
	sums    []pageDigest

	resolved  bool            // the last rebuild has asked for exports of other modules
	wanted    []uint64        // pages of the last place that are not in memory
	exports   *pe.ExportIndex // of exportsOf; made when a rebuild first asks for it
	exportsOf *introspect.Process
}

// NewCopier returns a copier for one guest. Other copiers of the guest may share mappings
// and files.
func NewCopier(g *introspect.Guest, mappings *Mappings, files *Files) *Copier {
	return &Copier{guest: g, mappings: mappings, files: files}
}

// place says where everything lies that the file of one image can be rebuilt from. It
// belongs to the copier and is valid until the copier's next place.
type place struct {
	process     *introspect.Process // nil for a driver
	module      *introspect.Module
	frames      []introspect.Frame // of the image's pages
	pages       []pe.Origin        // origins of the same pages
	standIns    int                // pages that stand in for the process's own
	pe32        bool               // it is known to be a 32-bit image
	section     *section           // nil if there is none
	file        *cachedFile        // nil if nothing of it is in memory
	layout      *pe.Layout
	substituted []substituted
}

// substituted is a private page of the process that the section's page takes the place of.
type substituted struct {
	page  int
	frame introspect.Frame
}

// Read copies a module of a process, or a driver if p is nil. The options say what else of
// the file a rebuild can use. Both results are valid until the next Read.
func (c *Copier) Read(ctx context.Context, p *introspect.Process, m *introspect.Module) (*pe.Image, pe.Options, error) {
	pl, err := c.find(ctx, p, m)
	if err != nil {
		return nil, pe.Options{}, err
	}
	return c.read(ctx, pl)
}

// find finds everything that may hold a part of the file of a module of a process, or of a
// driver if p is nil.
func (c *Copier) find(ctx context.Context, p *introspect.Process, m *introspect.Module) (*place, error) {
	size := m.Size
	v := m.VAD()
	if v != nil {
		size = v.End + 1 - v.Start
	}
	size = (size + pe.PageSize - 1) &^ (pe.PageSize - 1)
	if size == 0 || size > maxImage {
		return nil, fmt.Errorf("its size of %d bytes is out of bounds", size)
	}
	if m.Base%pe.PageSize != 0 {
		return nil, fmt.Errorf("its base %#x is no page boundary", m.Base)
	}
	pl := &place{process: p, module: m, pe32: m.Wow64 || narrow(c.guest)}
	c.wanted = c.wanted[:0]
	pl.frames, pl.pages = c.room(size / pe.PageSize)
	if p == nil {
		if err := c.guest.DriverFrames(ctx, m.Base, pl.frames); err != nil {
			return nil, err
		}
		pl.origins()
		return pl, nil
	}
	var shared []introspect.Frame
	if v != nil {
		s, err := c.files.section(c.guest, v)
		if err != nil {
			return nil, err
		}
		shared = s.frames
		if v.ControlArea() != 0 {
			pl.section = s
		}
	}
	if err := c.guest.ImageFrames(ctx, p, m.Base, pl.frames, m.Base, shared); err != nil {
		return nil, err
	}
	pl.origins()
	if pl.section != nil {
		pl.layout = layout(m, pl.pe32, pl.section.subs)
		pl.file = c.files.get(ctx, c.guest, v.FileObject())
		c.borrow(ctx, pl)
	}
	return pl, ctx.Err()
}

// room returns the buffers for the frames and origins of n pages.
func (c *Copier) room(n uint64) ([]introspect.Frame, []pe.Origin) {
	if uint64(cap(c.frames)) < n {
		c.frames, c.pages = make([]introspect.Frame, n), make([]pe.Origin, n)
	}
	return c.frames[:n], c.pages[:n]
}

func (pl *place) origins() {
	for i, f := range pl.frames {
		pl.pages[i] = origins[f.Origin]
		if f.Origin == introspect.PageStandIn {
			pl.standIns++
		}
	}
}

// borrow takes pages that are nowhere else from processes that have private copies of them
// at the same address. It lists the pages that are nowhere.
func (c *Copier) borrow(ctx context.Context, pl *place) {
	for _, s := range pl.section.subs {
		for i := uint64(0); i < s.Pages && s.First+i < uint64(len(pl.pages)) && i*pe.PageSize < s.Size; i++ {
			page := s.First + i
			if pl.pages[page] != pe.Absent || pl.file.holds(s.Offset+i*pe.PageSize, min(pe.PageSize, s.Size-i*pe.PageSize)) {
				continue
			}
			if !s.Writable() { // data of another process is neither this one's nor the file's
				if f := pl.section.elsewhere(ctx, c.guest, c.mappings, pl.module.VAD())[page]; f.InMemory() {
					pl.frames[page], pl.pages[page] = f, pe.OtherProcess
				}
			}
			if pl.pages[page] == pe.Absent && s.Readable() {
				c.wanted = append(c.wanted, page)
			}
		}
	}
}

// read copies what find has found.
func (c *Copier) read(ctx context.Context, pl *place) (*pe.Image, pe.Options, error) {
	m := pl.module
	opt := pe.Options{PreferredBase: m.OriginalBase, Layout: pl.layout, PE32: pl.pe32}
	n := uint64(len(pl.frames))
	mem, _ := c.buffer(n)
	if err := c.guest.ReadFrames(ctx, mem, pl.frames); err != nil {
		return nil, opt, err
	}
	for i, f := range pl.frames {
		if !f.InMemory() && pl.pages[i] != pe.DemandZero {
			pl.pages[i] = pe.Absent
		}
	}
	img := &pe.Image{Name: m.Name, Base: m.Base, Mem: mem, Pages: pl.pages, StandIns: pl.standIns}
	c.resolved = false
	if pl.process == nil {
		return img, opt, nil
	}
	opt.ResolveExport = func(va uint64) []pe.Symbol { return c.resolve(ctx, pl.process, va) }
	if pl.section == nil {
		return img, opt, nil
	}
	if err := c.readShared(ctx, pl.section, img); err != nil {
		return nil, opt, err
	}
	if pages := pl.file.read(ctx, c.guest, c.files, c.digester); len(pages) > 0 {
		opt.FilePages, opt.FileSize = pages, pl.file.size
	}
	if err := c.pageIn(ctx, pl.process, m.VAD(), img); err != nil {
		return nil, opt, err
	}
	return img, opt, ctx.Err()
}

// buffer returns the buffers for the bytes and origins of n pages.
func (c *Copier) buffer(n uint64) ([]byte, []introspect.PageOrigin) {
	if uint64(cap(c.origins)) < n {
		c.mem, c.origins = make([]byte, n*pe.PageSize), make([]introspect.PageOrigin, n)
	}
	return c.mem[:n*pe.PageSize], c.origins[:n]
}

// readShared reads the section's pages under the private copies of the process.
func (c *Copier) readShared(ctx context.Context, s *section, img *pe.Image) error {
	img.PrivateKnown = true
	c.private, c.index = c.private[:0], c.index[:0]
	for i, o := range img.Pages {
		if o == pe.Private && i < len(s.frames) && s.frames[i].Origin == introspect.PagePrototype {
			c.private, c.index = append(c.private, s.frames[i]), append(c.index, i)
		}
	}
	if len(c.shared) < len(c.private)*pe.PageSize {
		c.shared = make([]byte, len(c.private)*pe.PageSize)
	}
	if err := c.guest.ReadFrames(ctx, c.shared, c.private); err != nil {
		return err
	}
	c.run = c.run[:0]
	for i, f := range c.private {
		if f.InMemory() {
			c.run = append(c.run, pe.SharedPage{Page: c.index[i], Data: c.shared[i*pe.PageSize : (i+1)*pe.PageSize]})
		}
	}
	img.Shared = c.run
	return nil
}

// narrow reports whether all images of a guest are 32-bit.
func narrow(g *introspect.Guest) bool { return g.Kernel().Bits == 32 }

// layout translates the layout in the section object into the terms of package pe. It
// returns nil if the object does not describe sections.
func layout(m *introspect.Module, pe32 bool, subs []introspect.Subsection) *pe.Layout {
	if len(subs) < 2 { // mapped in one piece
		return nil
	}
	l := &pe.Layout{PE64: !pe32, SizeOfHeaders: uint32(subs[0].Size)}
	if m.EntryPoint > m.Base && m.EntryPoint-m.Base < m.Size {
		l.EntryPoint = uint32(m.EntryPoint - m.Base)
	}
	for _, s := range subs[1:] {
		if s.First+s.Pages > maxImage/pe.PageSize || s.Size > maxImage || s.Offset > maxImage {
			return nil
		}
		flags := uint32(0x40000000) // IMAGE_SCN_MEM_READ
		if s.Writable() {
			flags |= 0x80000000
		}
		if s.Executable() {
			flags |= 0x20000020 // IMAGE_SCN_MEM_EXECUTE, IMAGE_SCN_CNT_CODE
		}
		offset := uint32(s.Offset)
		if s.Size > 0 && offset == 0 {
			offset = 1 // in the first sector; 0 would mean that it has no bytes in the file
		}
		l.Sections = append(l.Sections, pe.Section{VirtualAddress: uint32(s.First * pe.PageSize), VirtualSize: uint32(s.Pages * pe.PageSize),
			RawOffset: offset, RawSize: uint32(s.Size), Characteristics: flags})
	}
	return l
}

// resolve returns the exported symbols at an address of a process.
func (c *Copier) resolve(ctx context.Context, p *introspect.Process, va uint64) []pe.Symbol {
	c.resolved = true
	if c.exportsOf == nil || c.exportsOf.EPROCESS != p.EPROCESS {
		c.exports, c.exportsOf = pe.NewExportIndex(), p
		for _, m := range c.mappings.modules[p.EPROCESS] {
			v := m.VAD()
			if v == nil || v.End+1-v.Start > maxImage {
				continue
			}
			n := (v.End + 1 - v.Start) / pe.PageSize
			mem, from := make([]byte, n*pe.PageSize), make([]introspect.PageOrigin, n)
			if c.guest.ReadImage(ctx, p, v, v.Start, mem, from) != nil {
				continue
			}
			pages := make([]pe.Origin, n)
			for i, o := range from {
				pages[i] = origins[o]
			}
			c.exports.Add(&pe.Image{Name: m.Name, Base: v.Start, Mem: mem, Pages: pages}, m.Name)
		}
	}
	return c.exports.Resolve(va)
}
