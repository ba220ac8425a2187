package introspect

import (
	"context"
	"errors"
	"fmt"

	"vmav.dev/vmav/internal/source"
)

// batch is how many pages are read at once.
const batch = 128

// ReadImage copies the pages of an image at [base, base+len(mem)) of a process into
// mem and notes in origins, one for each page, how each was found. mem must be a
// multiple of the page size. Pages that are not in RAM are zeroed and marked; only a
// source that fails is an error. vad, where not nil, is the range's descriptor,
// through whose prototype entries pages are found that the process has not touched,
// and by which copies of its own are told from the section's pages.
func (g *Guest) ReadImage(ctx context.Context, p *Process, vad *VAD, base uint64, mem []byte, origins []PageOrigin) error {
	return g.space(p.DTB).readImage(ctx, vad, base, mem, origins)
}

// ReadDriver is ReadImage for the kernel's own address space. Drivers of session
// space are mapped only in the processes of a session: their pages are absent here.
func (g *Guest) ReadDriver(ctx context.Context, base uint64, mem []byte, origins []PageOrigin) error {
	return g.as.readImage(ctx, nil, base, mem, origins)
}

// ReadOriginals copies pages of the section that vad maps, as the section holds them:
// what a process that has copies of its own would see without them. pages are indices
// from the start of the range; mem has room for as many pages.
func (g *Guest) ReadOriginals(ctx context.Context, vad *VAD, pages []int, mem []byte, origins []PageOrigin) error {
	return g.as.readPages(ctx, mem, origins, func(i int) (uint64, PageOrigin, error) {
		va := vad.Start + uint64(pages[i])*pageSize
		at, ok := vad.prototype(g.as.f, va)
		if !ok {
			return 0, PageAbsent, nil
		}
		return g.as.prototype(at, va)
	})
}

func (as *AddressSpace) readImage(ctx context.Context, vad *VAD, base uint64, mem []byte, origins []PageOrigin) error {
	if base%pageSize != 0 {
		return fmt.Errorf("read image at %#x: not on a page boundary", base)
	}
	err := as.readPages(ctx, mem, origins, func(i int) (uint64, PageOrigin, error) {
		return as.imagePage(vad, base+uint64(i)*pageSize)
	})
	if err != nil {
		return fmt.Errorf("read image at %#x: %w", base, err)
	}
	return nil
}

// imagePage finds a page of a section that is mapped at va. A page that a process has
// in memory and that is not the frame that the section's prototype entry leads to is a
// copy of its own: a valid entry for a shared page implies a valid prototype.
func (as *AddressSpace) imagePage(vad *VAD, va uint64) (pa uint64, origin PageOrigin, err error) {
	pa, origin, err = as.translate(va)
	if err != nil || vad == nil {
		return pa, origin, err
	}
	at, ok := vad.prototype(as.f, va)
	if !ok {
		return pa, origin, nil
	}
	switch origin {
	case PageAbsent:
		return as.prototype(at, va)
	case pagePagedOut:
		if pa, origin, err = as.prototype(at, va); origin == PagePrototype {
			origin = PageStandIn
		}
	case PageResident, PageTransition:
		shared, _, err := as.prototype(at, va)
		if err != nil {
			return 0, PageAbsent, err
		}
		if shared != pa {
			origin = PagePrivate
		}
	}
	return pa, origin, err
}

// prototype is the address of the prototype entry for va; ok is false where the range
// has none.
func (v *VAD) prototype(f *format, va uint64) (at uint64, ok bool) {
	if v.proto == 0 || va < v.Start || va > v.End {
		return 0, false
	}
	at = v.proto + (va-v.Start)/pageSize*f.pte
	return at, at <= v.lastProto
}

// readPages copies pages, each found by resolve, in batches. It does not allocate.
func (as *AddressSpace) readPages(ctx context.Context, mem []byte, origins []PageOrigin, resolve func(i int) (pa uint64, origin PageOrigin, err error)) error {
	if len(mem)%pageSize != 0 || len(origins) != len(mem)/pageSize {
		return fmt.Errorf("%d bytes with %d origins are not whole pages", len(mem), len(origins))
	}
	var reqs [batch]source.Request
	var index [batch]int
	n := 0
	flush := func() error {
		if n == 0 {
			return nil
		}
		if err := source.ReadBatch(as.t.src, reqs[:n]); err != nil {
			return err
		}
		for i := range n {
			err := reqs[i].Err
			if err == nil {
				continue
			}
			if !errors.Is(err, source.ErrHole) {
				return err
			}
			clear(reqs[i].P)
			origins[index[i]] = PageAbsent
		}
		n = 0
		return ctx.Err()
	}
	for i := range origins {
		page := mem[i*pageSize : (i+1)*pageSize]
		pa, origin, err := resolve(i)
		if err != nil {
			return err
		}
		if origin == pagePagedOut {
			origin = PageAbsent
		}
		origins[i] = origin
		if !origin.inMemory() {
			clear(page)
			continue
		}
		reqs[n] = source.Request{Addr: pa &^ (pageSize - 1), P: page}
		index[n] = i
		if n++; n == batch {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}
