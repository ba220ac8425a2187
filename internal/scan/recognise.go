package scan

import (
	"context"
	"errors"

	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/pe"
)

// inputs are everything that a rebuilt file and its record depend on. Equal inputs give
// equal results, whatever else a guest claims. A section object is not believed: only what
// was read through it counts.
type inputs struct {
	place   *place
	digests []pageDigest // of the image's pages that are in memory
	shared  func(i int) (pageDigest, bool)
	file    pageDigest
}

// key digests inputs.
func (d *digester) key(in *inputs) [32]byte {
	pl := in.place
	m := pl.module
	d.begin("image")
	d.string(m.Name)
	d.number(m.Base)
	d.number(m.OriginalBase)
	d.number(uint64(pl.standIns))
	d.flag(pl.process == nil)
	d.flag(pl.pe32)
	d.flag(pl.section != nil)
	d.layout(pl.layout)
	d.number(uint64(len(pl.pages)))
	for i, o := range pl.pages {
		d.text = append(d.text, byte(o))
		if o == pe.Absent || o == pe.DemandZero {
			continue
		}
		d.digest(in.digests[i])
		if o == pe.Private && pl.section != nil {
			p, ok := in.shared(i)
			if d.flag(ok); ok {
				d.digest(p)
			}
		}
	}
	if d.flag(pl.file != nil); pl.file != nil {
		d.digest(in.file)
	}
	return d.sum()
}

func (d *digester) layout(l *pe.Layout) {
	if d.flag(l != nil); l == nil {
		return
	}
	d.flag(l.PE64)
	d.number(uint64(l.SizeOfHeaders))
	d.number(uint64(l.EntryPoint))
	d.number(uint64(len(l.Sections)))
	for _, s := range l.Sections {
		for _, n := range []uint32{s.VirtualAddress, s.VirtualSize, s.RawOffset, s.RawSize, s.Characteristics} {
			d.number(uint64(n))
		}
	}
}

// substitute replaces private copies of data pages by the section's own pages. A process
// may write to these pages and does so all the time, and a rebuild does not use their
// bytes: the rebuilt file has the section's bytes there (internal/pe/doc.go). So an image
// can be recognised although its data has changed. A page that can be executed, according
// to the page table entry that the processor uses, is never replaced, whatever the section
// object says. Nor is a page of headers.
func (c *Copier) substitute(ctx context.Context, pl *place) {
	s := pl.section
	if s == nil || !s.atHome(ctx, c.guest, pl.module.Base) {
		return
	}
	for k := range s.subs {
		sub := &s.subs[k]
		if k == 0 || !sub.Writable() || sub.Executable() {
			continue
		}
		for i := sub.First; i < sub.First+sub.Pages && i < uint64(len(pl.pages)) && i < uint64(len(s.frames)); i++ {
			if pl.pages[i] == pe.Private && !pl.frames[i].Executable && s.frames[i].Origin == introspect.PagePrototype {
				pl.substituted = append(pl.substituted, substituted{int(i), pl.frames[i]})
				pl.frames[i], pl.pages[i] = s.frames[i], pe.Prototype
			}
		}
	}
}

// restore puts the private pages of the process back into a copy.
func (c *Copier) restore(ctx context.Context, pl *place, img *pe.Image) {
	for _, s := range pl.substituted {
		frame := [1]introspect.Frame{s.frame}
		if c.guest.ReadFrames(ctx, img.Mem[s.page*pe.PageSize:(s.page+1)*pe.PageSize], frame[:]) == nil {
			img.Pages[s.page] = pe.Private
		}
	}
}

// liveKey returns the key of an image as it is in the guest now. It reads each page of a
// section once in a scan for all processes. ok is false if something could not be read, so
// that there is no key.
func (c *Copier) liveKey(ctx context.Context, pl *place) (key [32]byte, ok bool, err error) {
	in := inputs{place: pl, digests: c.digests(len(pl.pages))}
	var frames []introspect.Frame
	var shared []pageDigest
	if pl.section != nil {
		if shared, err = pl.section.digest(ctx, c.digester); err != nil {
			return key, false, unlessHole(err)
		}
		frames = pl.section.frames
		in.shared = func(i int) (pageDigest, bool) {
			if i >= len(frames) || frames[i].Origin != introspect.PagePrototype {
				return pageDigest{}, false
			}
			return shared[i], true
		}
	}
	known := func(i int) bool {
		if i < len(frames) && frames[i].InMemory() && frames[i].GPA == pl.frames[i].GPA {
			in.digests[i] = shared[i]
			return true
		}
		return false
	}
	if err = c.digester.frames(ctx, pl.frames, known, in.digests); err != nil {
		return key, false, unlessHole(err)
	}
	if in.file, err = pl.file.digest(ctx, c.digester); err != nil {
		return key, false, unlessHole(err)
	}
	return c.digester.key(&in), true, nil
}

func unlessHole(err error) error {
	if errors.Is(err, errHole) {
		return nil
	}
	return err
}

// copiedKey returns the key of the image that was read last, from the very bytes that a
// rebuild works on.
func (c *Copier) copiedKey(pl *place, img *pe.Image) (key [32]byte, ok bool) {
	pl.standIns = img.StandIns // pages that were paged in may have become stand-ins
	in := inputs{place: pl, digests: c.digests(len(pl.pages))}
	for i, o := range img.Pages {
		if o != pe.Absent && o != pe.DemandZero {
			in.digests[i] = c.digester.page(img.Mem[i*pe.PageSize : (i+1)*pe.PageSize])
		}
	}
	next := 0
	in.shared = func(i int) (pageDigest, bool) { // called with ascending pages
		if next < len(img.Shared) && img.Shared[next].Page == i {
			next++
			return c.digester.page(img.Shared[next-1].Data), true
		}
		return pageDigest{}, false
	}
	if pl.file != nil {
		if !pl.file.copyOK {
			return key, false
		}
		in.file = pl.file.copySum
	}
	return c.digester.key(&in), true
}

func (c *Copier) digests(n int) []pageDigest {
	if cap(c.sums) < n {
		c.sums = make([]pageDigest, n)
	}
	return c.sums[:n]
}

// liveRegionKey returns the key of a piece of memory as it is in the guest now.
func (c *Copier) liveRegionKey(ctx context.Context, base uint64, frames []introspect.Frame) (key [32]byte, ok bool, err error) {
	sums := c.digests(len(frames))
	if err := c.digester.frames(ctx, frames, nil, sums); err != nil {
		return key, false, unlessHole(err)
	}
	return c.digester.region(narrow(c.guest), base, len(frames), func(i int) pe.Origin { return origins[frames[i].Origin] },
		func(i int) pageDigest { return sums[i] }), true, nil
}

// copiedRegionKey returns the key of a piece of memory that was copied.
func (c *Copier) copiedRegionKey(img *pe.Image) [32]byte {
	return c.digester.region(narrow(c.guest), img.Base, len(img.Pages), func(i int) pe.Origin { return img.Pages[i] },
		func(i int) pageDigest { return c.digester.page(img.Mem[i*pe.PageSize : (i+1)*pe.PageSize]) })
}

func (d *digester) region(pe32 bool, base uint64, pages int, origin func(i int) pe.Origin, page func(i int) pageDigest) [32]byte {
	d.begin("region")
	d.flag(pe32)
	d.number(base)
	for i := range pages {
		o := origin(i)
		d.text = append(d.text, byte(o))
		if o != pe.Absent && o != pe.DemandZero {
			d.digest(page(i))
		}
	}
	return d.sum()
}
