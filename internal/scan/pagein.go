package scan

import (
	"context"

	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/pagein"
	"vmav.dev/vmav/internal/pe"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/subject"
	"vmav.dev/vmav/internal/verdict"
)

// OpenPager makes a pager for a guest that leaves the processes alone that a verdict
// would leave alone. The caller closes it.
func OpenPager(g *introspect.Guest, src source.Source, b PageIn) (*pagein.Pager, error) {
	return pagein.Open(g, src, pagein.Options{Pages: b.Pages, ProcessPages: b.ProcessPages, Wait: b.Wait, Time: b.Time,
		Refuse: func(p *introspect.Process) string { return verdict.PageIn(subject.Of(p)) }})
}

// PageIn has the copier ask for pages that are in no memory; with nil, which is what it
// begins with, it does not.
func (c *Copier) PageIn(p *pagein.Pager) { c.pager = p }

// pageIn asks for the pages wanted of an image: in the process itself first, then in
// others that have the section at the same address, and copies what has come.
func (c *Copier) pageIn(ctx context.Context, p *introspect.Process, v *introspect.VAD, img *pe.Image) error {
	if c.pager == nil || len(c.wanted) == 0 {
		return nil
	}
	targets := []pagein.Target{{Process: p, VAD: v}}
	for _, o := range c.mappings.of(v) {
		if o.process.EPROCESS != p.EPROCESS {
			targets = append(targets, pagein.Target{Process: o.process, VAD: o.vad})
		}
	}
	vas := make([]uint64, len(c.wanted))
	for i, page := range c.wanted {
		vas[i] = v.Start + page*pe.PageSize
	}
	n, err := c.pager.Fetch(ctx, targets, vas)
	if err != nil || n == 0 {
		return err
	}
	c.guest.Refresh()
	c.files.forget(v)
	var from [1]introspect.PageOrigin
	for i, page := range c.wanted {
		mem := img.Mem[page*pe.PageSize : (page+1)*pe.PageSize]
		if err := c.guest.ReadImage(ctx, p, v, vas[i], mem, from[:]); err != nil {
			return err
		}
		switch from[0] {
		case introspect.PageResident, introspect.PageTransition, introspect.PagePrototype:
			img.Pages[page] = pe.PagedIn
		default:
			// It was written to, or taken away again, in between.
			if img.Pages[page] = origins[from[0]]; from[0] == introspect.PageStandIn {
				img.StandIns++
			}
		}
	}
	return nil
}
