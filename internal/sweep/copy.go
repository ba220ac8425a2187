package sweep

import (
	"context"
	"fmt"

	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/pagein"
	"vmav.dev/vmav/internal/pe"
)

// maxImage bounds one image, in bytes, and one file in the guest's cache.
const maxImage = 256 << 20

// maxOthers bounds the other processes that are looked into for a page.
const maxOthers = 256

// origins are the words of pe for where a page was found.
var origins = map[introspect.PageOrigin]pe.Origin{
	introspect.PageAbsent: pe.Absent, introspect.PageResident: pe.Resident, introspect.PageTransition: pe.Transition,
	introspect.PagePrototype: pe.Prototype, introspect.PageDemandZero: pe.DemandZero,
	introspect.PagePrivate: pe.Private, introspect.PageStandIn: pe.Prototype,
}

// Copier copies images out of a guest with all that the guest's memory holds of their
// files. It reuses its buffers and is for one goroutine.
type Copier struct {
	guest    *introspect.Guest
	mappings *Mappings
	files    *Files
	pager    *pagein.Pager

	mem     []byte
	origins []introspect.PageOrigin
	pages   []pe.Origin
	private []int
	shared  []byte
	from    []introspect.PageOrigin
	run     []pe.SharedPage

	wanted []uint64 // pages that are nowhere in memory

	exports   *pe.ExportIndex // of exportsOf, made when a rebuild asks for it
	exportsOf *introspect.Process
}

// NewCopier returns a copier for one guest. mappings and files may be shared with
// others.
func NewCopier(g *introspect.Guest, mappings *Mappings, files *Files) *Copier {
	return &Copier{guest: g, mappings: mappings, files: files}
}

// Read copies a module of a process, or a driver where p is nil, and says what else of
// the file a rebuild can use. Both are valid until the next Read.
func (c *Copier) Read(ctx context.Context, p *introspect.Process, m *introspect.Module) (*pe.Image, pe.Options, error) {
	opt := pe.Options{PreferredBase: m.OriginalBase}
	size := m.Size
	v := m.VAD()
	if v != nil {
		size = v.End + 1 - v.Start
	}
	size = (size + pe.PageSize - 1) &^ (pe.PageSize - 1)
	if size == 0 || size > maxImage {
		return nil, opt, fmt.Errorf("its size of %d bytes is out of bounds", size)
	}
	if m.Base%pe.PageSize != 0 {
		return nil, opt, fmt.Errorf("its base %#x is no page boundary", m.Base)
	}
	n := size / pe.PageSize
	mem, from := c.buffer(n)
	img := &pe.Image{Name: m.Name, Base: m.Base, Mem: mem, Pages: c.pages[:n]}
	var err error
	if p == nil {
		err = c.guest.ReadDriver(ctx, m.Base, mem, from)
	} else {
		err = c.guest.ReadImage(ctx, p, v, m.Base, mem, from)
	}
	if err != nil {
		return nil, opt, err
	}
	for i, o := range from {
		img.Pages[i] = origins[o]
		if o == introspect.PageStandIn {
			img.StandIns++
		}
	}
	if p == nil {
		return img, opt, nil
	}
	opt.ResolveExport = func(va uint64) []pe.Symbol { return c.resolve(ctx, p, va) }
	if v == nil || v.ControlArea() == 0 {
		return img, opt, nil
	}
	if err := c.readShared(ctx, v, img); err != nil {
		return nil, opt, err
	}
	if err := c.section(ctx, p, m, img, &opt); err != nil {
		return nil, opt, err
	}
	return img, opt, ctx.Err()
}

// buffer returns room for n pages, with as many places in c.pages.
func (c *Copier) buffer(n uint64) ([]byte, []introspect.PageOrigin) {
	if uint64(cap(c.origins)) < n {
		c.mem, c.origins, c.pages = make([]byte, n*pe.PageSize), make([]introspect.PageOrigin, n), make([]pe.Origin, n)
	}
	return c.mem[:n*pe.PageSize], c.origins[:n]
}

// readShared reads the section's pages under the process's own copies.
func (c *Copier) readShared(ctx context.Context, v *introspect.VAD, img *pe.Image) error {
	img.PrivateKnown = true
	c.private = c.private[:0]
	for i, o := range img.Pages {
		if o == pe.Private {
			c.private = append(c.private, i)
		}
	}
	n := len(c.private)
	if cap(c.from) < n {
		c.shared, c.from = make([]byte, n*pe.PageSize), make([]introspect.PageOrigin, n)
	}
	shared, from := c.shared[:n*pe.PageSize], c.from[:n]
	if err := c.guest.ReadOriginals(ctx, v, c.private, shared, from); err != nil {
		return err
	}
	c.run = c.run[:0]
	for i, page := range c.private {
		if from[i] == introspect.PagePrototype {
			c.run = append(c.run, pe.SharedPage{Page: page, Data: shared[i*pe.PageSize : (i+1)*pe.PageSize]})
		}
	}
	img.Shared = c.run
	return nil
}

// section adds what the section object leads to: its own account of the layout, the
// cached file, and other processes' copies of what is in neither. What cannot be read
// of them is not there: the image itself is.
func (c *Copier) section(ctx context.Context, p *introspect.Process, m *introspect.Module, img *pe.Image, opt *pe.Options) error {
	v := m.VAD()
	subs, err := c.guest.Subsections(v)
	if err != nil {
		subs = nil
	}
	opt.Layout = layout(m, subs)
	file := c.files.get(ctx, c.guest, v.FileObject())
	if file != nil {
		opt.FilePages, opt.FileSize = file.pages, file.size
	}
	c.wanted = c.wanted[:0]
	for _, s := range subs {
		for i := uint64(0); i < s.Pages && s.First+i < uint64(len(img.Pages)); i++ {
			page := s.First + i
			if img.Pages[page] != pe.Absent || i*pe.PageSize >= s.Size || file.holds(s.Offset+i*pe.PageSize, min(pe.PageSize, s.Size-i*pe.PageSize)) {
				continue
			}
			if !s.Writable() { // another process's data is not this one's, and not the file's
				c.fromOthers(ctx, p, v, img, page)
			}
			if img.Pages[page] == pe.Absent && s.Readable() {
				c.wanted = append(c.wanted, page)
			}
		}
	}
	return c.pageIn(ctx, p, v, img)
}

// fromOthers takes a page that is nowhere else from a process that has a copy of its
// own of it at the same address.
func (c *Copier) fromOthers(ctx context.Context, p *introspect.Process, v *introspect.VAD, img *pe.Image, page uint64) {
	var from [1]introspect.PageOrigin
	mem := img.Mem[page*pe.PageSize : (page+1)*pe.PageSize]
	others := c.mappings.of(v)
	for _, o := range others[:min(len(others), maxOthers)] {
		if o.process.EPROCESS == p.EPROCESS {
			continue
		}
		if err := c.guest.ReadImage(ctx, o.process, o.vad, img.Base+page*pe.PageSize, mem, from[:]); err == nil && from[0] == introspect.PagePrivate {
			img.Pages[page] = pe.OtherProcess
			return
		}
		clear(mem)
	}
}

// layout is the section object's account in the words of pe; nil where it says nothing
// about sections.
func layout(m *introspect.Module, subs []introspect.Subsection) *pe.Layout {
	if len(subs) < 2 { // mapped in one piece
		return nil
	}
	l := &pe.Layout{PE64: !m.Wow64, SizeOfHeaders: uint32(subs[0].Size)}
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
			offset = 1 // in the first sector; zero would say that it has no bytes in the file
		}
		l.Sections = append(l.Sections, pe.Section{VirtualAddress: uint32(s.First * pe.PageSize), VirtualSize: uint32(s.Pages * pe.PageSize),
			RawOffset: offset, RawSize: uint32(s.Size), Characteristics: flags})
	}
	return l
}

// resolve names what lives at an address of a process, by the exports of its modules.
func (c *Copier) resolve(ctx context.Context, p *introspect.Process, va uint64) []pe.Symbol {
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
