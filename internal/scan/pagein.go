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

// OpenPager opens a pager for a guest. The pager leaves alone the processes that no verdict
// may touch. The caller closes it.
func OpenPager(g *introspect.Guest, src source.Source, b PageIn) (*pagein.Pager, error) {
	return pagein.Open(g, src, pagein.Options{Pages: b.Pages, ProcessPages: b.ProcessPages, Wait: b.Wait, Time: b.Time,
		Refuse: func(p *introspect.Process) string { return verdict.PageIn(subject.Of(p)) }})
}

// PageIn makes the copier ask p for pages that are not in memory. With nil, the default, it
// does not ask.
func (c *Copier) PageIn(p *pagein.Pager) { c.pager = p }

// pageIn asks for the wanted pages of an image: first in the process itself, then in others
// that map the section at the same address. It copies the pages that were read in.
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
			// In the meantime it was written to, or removed again.
			if img.Pages[page] = origins[from[0]]; from[0] == introspect.PageStandIn {
				img.StandIns++
			}
		}
	}
	return nil
}
