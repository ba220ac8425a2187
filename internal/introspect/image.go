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
// through whose prototype entries pages are found that the process has not touched.
func (g *Guest) ReadImage(ctx context.Context, p *Process, vad *VAD, base uint64, mem []byte, origins []PageOrigin) error {
	return g.space(p.DTB).readPages(ctx, vad, base, mem, origins)
}

// ReadDriver is ReadImage for the kernel's own address space. Drivers of session
// space are mapped only in the processes of a session: their pages are absent here.
func (g *Guest) ReadDriver(ctx context.Context, base uint64, mem []byte, origins []PageOrigin) error {
	return g.as.readPages(ctx, nil, base, mem, origins)
}

func (as *AddressSpace) readPages(ctx context.Context, vad *VAD, base uint64, mem []byte, origins []PageOrigin) error {
	if len(mem)%pageSize != 0 || len(origins) != len(mem)/pageSize || base%pageSize != 0 {
		return fmt.Errorf("read image at %#x: %d bytes with %d origins are not whole pages", base, len(mem), len(origins))
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
		va := base + uint64(i)*pageSize
		pa, origin, err := as.translate(va)
		if err == nil && origin == PageAbsent && vad != nil && vad.proto != 0 {
			if at := vad.proto + (va-vad.Start)/pageSize*8; va >= vad.Start && va <= vad.End && at <= vad.lastProto {
				pa, origin, err = as.prototype(at, va)
			}
		}
		if err != nil {
			return fmt.Errorf("read image at %#x: %w", base, err)
		}
		origins[i] = origin
		if origin == PageAbsent || origin == PageDemandZero {
			clear(page)
			continue
		}
		reqs[n] = source.Request{Addr: pa &^ (pageSize - 1), P: page}
		index[n] = i
		if n++; n == batch {
			if err := flush(); err != nil {
				return fmt.Errorf("read image at %#x: %w", base, err)
			}
		}
	}
	if err := flush(); err != nil {
		return fmt.Errorf("read image at %#x: %w", base, err)
	}
	return nil
}
