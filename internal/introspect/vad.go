package introspect

import (
	"context"
	"errors"
	"fmt"
	"sort"

	"vmav.dev/vmav/internal/winstruct"
)

// VAD is one range of a process's address space, from its virtual address descriptor.
type VAD struct {
	Start, End uint64 // addresses of the first and the last byte
	Type       uint8  // MI_VAD_TYPE: 2 for an image
	Protection uint8  // index into MmProtectToValue
	Private    bool
	Path       string // of the mapped file, without its device; "" for private memory
	proto      uint64 // first prototype entry, 0 for private memory
	lastProto  uint64
	control    uint64 // CONTROL_AREA, 0 for private memory
	file       uint64 // FILE_OBJECT, 0 where no file stands behind the range
}

// ControlArea returns the address of the section's control area, or 0 for private memory.
// Two ranges with the same control area map the same section.
func (v *VAD) ControlArea() uint64 { return v.control }

// FileObject returns the address of the FILE_OBJECT that the section was made from, or 0
// for private memory and for sections of the page file.
func (v *VAD) FileObject() uint64 { return v.file }

// vadImage is VadImageMap of MI_VAD_TYPE.
const vadImage = 2

// Image reports whether the range maps a PE image.
func (v *VAD) Image() bool { return v.Type == vadImage }

// Executable reports whether the range was mapped with any execute right.
func (v *VAD) Executable() bool { return executable(v.Protection) }

// executable decodes a protection index: of its three low bits, the values 2, 3, 6 and 7
// allow execution.
func executable(protection uint8) bool {
	return protection&7 == 2 || protection&7 == 3 || protection&7 >= 6
}

// Writable reports whether the range was mapped with any right to write, if only to a
// private copy. That is the third bit of a protection index; the two above it say guard
// page or no access.
func (v *VAD) Writable() bool { return v.Protection&4 != 0 && v.Protection>>3&2 == 0 }

// VADs lists the ranges of a process's address space in ascending order. What could not be
// read comes back as problems; it is an error if the tree's root could not.
func (g *Guest) VADs(ctx context.Context, p *Process) ([]VAD, []Problem, error) {
	what := fmt.Sprintf("process %d (%s)", p.PID, p.Name)
	root, err := g.as.word(p.EPROCESS + uint64(g.off.VAD.TreeRoot))
	if err != nil {
		return nil, nil, fmt.Errorf("%s: read VAD root: %w", what, err)
	}
	var out []VAD
	var problems []Problem
	id := p.Identity()
	seen := make(map[uint64]struct{})
	stack := []uint64{root}
	rec := g.as.newRecord(max(g.off.VAD.Size, g.off.VAD.ShortSize))
	for len(stack) > 0 {
		if err := ctx.Err(); err != nil {
			return nil, nil, err
		}
		at := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if at == 0 {
			continue
		}
		if _, again := seen[at]; again {
			problems = append(problems, Problem{What: what, Err: fmt.Errorf("VAD tree: node %#x twice", at), Process: id})
			continue
		}
		if len(seen) >= maxVADs {
			problems = append(problems, Problem{What: what, Err: errors.New("VAD tree has no end"), Process: id})
			break
		}
		seen[at] = struct{}{}
		short := rec.part(g.off.VAD.ShortSize)
		if err := g.as.Read(short.b, at); err != nil {
			problems = append(problems, Problem{What: what, Err: fmt.Errorf("read VAD at %#x: %w", at, err), Process: id})
			continue
		}
		stack = append(stack, short.ptr(g.off.VAD.Left), short.ptr(g.off.VAD.Right))
		v, err := g.vad(rec, at)
		if err != nil {
			problems = append(problems, Problem{What: what, Err: fmt.Errorf("read VAD of %#x: %w", v.Start, err), Process: id})
		}
		if v.End < v.Start {
			problems = append(problems, Problem{What: what, Err: fmt.Errorf("VAD at %#x ends before it starts", at), Process: id})
			continue
		}
		out = append(out, v)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Start < out[j].Start })
	return out, problems, nil
}

// controlArea returns the address of the control area of the section that a long node maps.
// Until Windows Server 2003 the node refers to it; later it refers to a subsection that
// does.
func (g *Guest) controlArea(rec record) (uint64, error) {
	o := &g.off.VAD
	if o.Subsection == winstruct.Missing {
		return rec.ptr(o.Control), nil
	}
	sub := rec.ptr(o.Subsection)
	if sub == 0 {
		return 0, nil
	}
	control, err := g.as.word(sub + uint64(g.off.SubsectionControl))
	if err != nil {
		return 0, fmt.Errorf("subsection: %w", err)
	}
	return control, nil
}

// vad decodes the node at an address. rec has its short part already.
func (g *Guest) vad(rec record, at uint64) (VAD, error) {
	o := &g.off.VAD
	first, last := rec.field(o.Start), rec.field(o.End)
	if o.StartHigh != winstruct.Missing && o.Start.Size == 4 {
		first |= uint64(rec.u8(o.StartHigh)) << 32
		last |= uint64(rec.u8(o.EndHigh)) << 32
	}
	flags := func(f winstruct.Field) uint64 {
		f.Offset += o.Flags
		return rec.field(f)
	}
	kind := flags(o.Type)
	if o.Type.Name == "ImageMap" { // a bit of its own until Windows XP
		kind *= vadImage
	}
	v := VAD{Start: first << pageShift, End: last<<pageShift | (pageSize - 1), Type: uint8(kind),
		Protection: uint8(flags(o.Protection)), Private: flags(o.Private) != 0}
	if v.Private {
		return v, nil
	}
	if err := g.as.Read(rec.part(o.Size).b, at); err != nil {
		return v, err
	}
	v.proto, v.lastProto = rec.ptr(o.FirstPTE), rec.ptr(o.LastPTE)
	control, err := g.controlArea(rec)
	if err != nil || control == 0 {
		return v, err
	}
	file, err := g.as.word(control + uint64(g.off.ControlFile))
	if err != nil {
		return v, fmt.Errorf("control area: %w", err)
	}
	v.control = control
	if file = g.as.f.fastRef(file); file == 0 {
		return v, nil
	}
	v.file = file
	name, err := g.as.readRecord(file+uint64(g.off.FileName), g.as.unicodeSize())
	if err != nil {
		return v, fmt.Errorf("file object: %w", err)
	}
	v.Path, err = name.unicode(g.as, 0)
	return v, err
}
