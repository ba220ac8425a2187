package introspect

import (
	"context"
	"fmt"
)

// batch is how many pages are read at once.
const batch = 128

// ReadImage copies the pages of an image at [base, base+len(mem)) of a process into mem.
// base and len(mem) are multiples of the page size. origins has one element for each page
// and receives how the page was found. Pages that are not in RAM are zeroed. vad is the
// descriptor of the range, or nil. With it, private copies are told apart from the
// section's pages, and pages are found that the process has not touched. Only a source that
// fails is an error.
func (g *Guest) ReadImage(ctx context.Context, p *Process, vad *VAD, base uint64, mem []byte, origins []PageOrigin) error {
	return g.space(p.DTB).readImage(ctx, vad, base, mem, origins)
}

func (as *AddressSpace) readImage(ctx context.Context, vad *VAD, base uint64, mem []byte, origins []PageOrigin) error {
	if base%pageSize != 0 {
		return fmt.Errorf("read image at %#x: not on a page boundary", base)
	}
	if len(mem)%pageSize != 0 || len(origins) != len(mem)/pageSize {
		return fmt.Errorf("read image at %#x: %d bytes with %d origins are not whole pages", base, len(mem), len(origins))
	}
	var frames [batch]Frame
	for i := 0; i < len(origins); i += batch {
		n := min(batch, len(origins)-i)
		err := as.rangeFrames(ctx, vad, base+uint64(i)*pageSize, frames[:n])
		if err == nil {
			err = readFrames(ctx, as.t.src, mem[i*pageSize:(i+n)*pageSize], frames[:n])
		}
		if err != nil {
			return fmt.Errorf("read image at %#x: %w", base, err)
		}
		for j := range n {
			origins[i+j] = frames[j].Origin
		}
	}
	return nil
}

// rangeFrames finds the pages of a range. If vad is not nil, these include pages of the
// section that it maps.
func (as *AddressSpace) rangeFrames(ctx context.Context, vad *VAD, base uint64, frames []Frame) error {
	var section [batch]Frame
	for i := 0; i < len(frames); i += batch {
		va, n := base+uint64(i)*pageSize, min(batch, len(frames)-i)
		start, shared, err := as.sectionAt(vad, va, section[:n])
		if err != nil {
			return err
		}
		if err := as.frames(ctx, va, frames[i:i+n], start, shared); err != nil {
			return err
		}
	}
	return nil
}

// sectionAt finds the pages of vad's section for [va, va+len(frames) pages), with frames as
// room for the result. start is the address at which the first of them is mapped. Without a
// vad or a section there are none.
func (as *AddressSpace) sectionAt(vad *VAD, va uint64, frames []Frame) (start uint64, section []Frame, err error) {
	if vad == nil {
		return 0, nil, nil
	}
	start = max(va, vad.Start)
	at, ok := vad.prototype(as.f, start)
	if end := va + uint64(len(frames))*pageSize; !ok || start >= end {
		return 0, nil, nil
	} else {
		n := min((end-start)/pageSize, (vad.lastProto-at)/as.f.pte+1, (vad.End-start)/pageSize+1)
		section = frames[:n]
	}
	return start, section, as.prototypes(at, section)
}

// prototype returns the address of the prototype entry for va. ok is false if the range has
// none.
func (v *VAD) prototype(f *format, va uint64) (at uint64, ok bool) {
	if v.proto == 0 || va < v.Start || va > v.End {
		return 0, false
	}
	at = v.proto + (va-v.Start)/pageSize*f.pte
	return at, at <= v.lastProto
}
