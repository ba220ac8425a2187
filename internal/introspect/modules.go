package introspect

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"strings"

	"vmav.dev/vmav/internal/winstruct"
)

// Flags of a module.
const (
	FlagUnlinked = "unlinked" // an image that no loader list names
	FlagUnmapped = "unmapped" // on a loader list, but no image is mapped there
)

// The 32-bit forms of the loader's structures in a wow64 process; kernel symbols do
// not hold them, and no build changed them (Windows Internals; ntdll.dll's symbols).
const (
	ldr32Load, ldr32Memory, ldr32Init       = 0x0c, 0x14, 0x1c
	entry32Load, entry32Memory, entry32Init = 0x00, 0x08, 0x10
	entry32Base, entry32Entry, entry32Image = 0x18, 0x1c, 0x20
	entry32Full, entry32Name                = 0x24, 0x2c
	entry32Size                             = 0x34
)

// Modules lists the images of a process in the order of their addresses: those its
// loader lists name, 64- and 32-bit, and image ranges of its address space that none
// does. A process that has exited or has no user part has none.
func (g *Guest) Modules(ctx context.Context, p *Process) ([]Module, []Problem, error) {
	if p.PEB == 0 || !p.Exited.IsZero() {
		return nil, nil, nil
	}
	what := fmt.Sprintf("process %d (%s)", p.PID, p.Name)
	as := g.space(p.DTB)
	found := make(map[uint64]*Module)
	var problems []Problem
	note := func(doing string, err error) {
		if err != nil {
			problems = append(problems, Problem{what, fmt.Errorf("%s: %w", doing, err)})
		}
	}
	note("64-bit loader lists", g.loaderLists(ctx, as, p.PEB, found))
	if p.PEB32 != 0 && g.off.PEB32.Ldr != winstruct.Missing {
		note("32-bit loader lists", g.loaderLists32(ctx, as, p.PEB32, found))
	}
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	vads, probs, err := g.VADs(ctx, p)
	if ctx.Err() != nil {
		return nil, nil, ctx.Err()
	}
	note("address space", err)
	problems = append(problems, probs...)
	mapped := make(map[uint64]*VAD)
	for i := range vads {
		v := &vads[i]
		if !v.Image() {
			continue
		}
		mapped[v.Start] = v
		m := found[v.Start]
		if m == nil {
			name := v.Path[strings.LastIndexByte(v.Path, '\\')+1:]
			m = &Module{Name: name, Path: v.Path, Base: v.Start, Size: v.End + 1 - v.Start, Flags: []string{FlagUnlinked}}
			found[v.Start] = m
		}
		m.vad = v
	}
	out := make([]Module, 0, len(found))
	for _, m := range found {
		if mapped[m.Base] == nil && err == nil {
			m.Flags = append(m.Flags, FlagUnmapped)
		}
		out = append(out, *m)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Base < out[j].Base })
	return out, problems, nil
}

// loaderLists adds what the three 64-bit loader lists name. The lists are the
// process's own memory: it can cut any of them.
func (g *Guest) loaderLists(ctx context.Context, as *AddressSpace, peb uint64, found map[uint64]*Module) error {
	ldr, err := as.word(peb + uint64(g.off.PEB.Ldr))
	if err != nil {
		return fmt.Errorf("read PEB at %#x: %w", peb, err)
	}
	if ldr == 0 {
		return nil // the process has just started
	}
	o := &g.off.Entry
	rec := make(record, o.Size)
	var errs []error
	for _, l := range []struct{ head, link uint32 }{{g.off.Ldr.Load, o.Load}, {g.off.Ldr.Memory, o.Memory}, {g.off.Ldr.Init, o.Init}} {
		errs = append(errs, as.list(ctx, ldr+uint64(l.head), 0, maxModules, func(entry uint64) bool {
			at := entry - uint64(l.link)
			if err := as.Read(rec, at); err != nil {
				errs = append(errs, fmt.Errorf("loader entry at %#x: %w", at, err))
				return true
			}
			base := rec.u64(o.Base)
			if base == 0 || found[base] != nil {
				return true
			}
			m := &Module{Base: base, Size: uint64(rec.u32(o.Image)), EntryPoint: rec.u64(o.Entry), Flags: []string{}}
			if o.Original != winstruct.Missing {
				m.OriginalBase = rec.u64(o.Original)
			}
			var err1, err2 error
			m.Name, err1 = rec.unicode(as, o.BaseName)
			m.Path, err2 = rec.unicode(as, o.FullName)
			errs = append(errs, nameError(base, errors.Join(err1, err2)))
			found[base] = m
			return true
		}))
	}
	return errors.Join(errs...)
}

func nameError(base uint64, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("name of the module at %#x: %w", base, err)
}

// loaderLists32 adds what the 32-bit loader lists of a wow64 process name. The
// program itself is on both sides' lists.
func (g *Guest) loaderLists32(ctx context.Context, as *AddressSpace, peb32 uint64, found map[uint64]*Module) error {
	ptr := make(record, 4)
	read32 := func(va uint64) (uint64, error) {
		err := as.Read(ptr, va)
		return uint64(ptr.u32(0)), err
	}
	ldr, err := read32(peb32 + uint64(g.off.PEB32.Ldr))
	if err != nil {
		return fmt.Errorf("read 32-bit PEB at %#x: %w", peb32, err)
	}
	if ldr == 0 {
		return nil
	}
	rec := make(record, entry32Size)
	var errs []error
	for _, l := range []struct{ head, link uint64 }{{ldr32Load, entry32Load}, {ldr32Memory, entry32Memory}, {ldr32Init, entry32Init}} {
		head := ldr + l.head
		at, err := read32(head)
		seen := make(map[uint64]bool)
		for ; err == nil && at != head; at, err = read32(at) {
			if cerr := ctx.Err(); cerr != nil {
				return cerr
			}
			if seen[at] || len(seen) >= maxModules {
				err = fmt.Errorf("%w: after %d entries it is back at %#x", errList, len(seen), at)
				break
			}
			seen[at] = true
			if rerr := as.Read(rec, at-l.link); rerr != nil {
				errs = append(errs, fmt.Errorf("32-bit loader entry at %#x: %w", at-l.link, rerr))
				continue
			}
			base := uint64(rec.u32(entry32Base))
			if base == 0 {
				continue
			}
			if m := found[base]; m != nil {
				m.Wow64 = true
				continue
			}
			m := &Module{Base: base, Size: uint64(rec.u32(entry32Image)), EntryPoint: uint64(rec.u32(entry32Entry)), Wow64: true, Flags: []string{}}
			var err1, err2 error
			m.Name, err1 = rec.unicode32(as, entry32Name)
			m.Path, err2 = rec.unicode32(as, entry32Full)
			errs = append(errs, nameError(base, errors.Join(err1, err2)))
			found[base] = m
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Drivers lists the kernel and its drivers in load order.
func (g *Guest) Drivers(ctx context.Context) ([]Module, []Problem, error) {
	o := &g.off.Driver
	var out []Module
	var problems []Problem
	if g.off.Sym.LoadedModuleList == 0 {
		return nil, []Problem{{"loaded module list", errors.New("where it lies could not be proven: drivers are not listed")}}, nil
	}
	rec := make(record, o.Size)
	err := g.as.list(ctx, g.kernel.Base+g.off.Sym.LoadedModuleList, 0, maxModules, func(entry uint64) bool {
		at := entry - uint64(o.Links)
		if err := g.as.Read(rec, at); err != nil {
			problems = append(problems, Problem{fmt.Sprintf("driver entry at %#x", at), err})
			return true
		}
		m := Module{Base: rec.u64(o.Base), Size: uint64(rec.u32(o.Image)), Flags: []string{}}
		var err1, err2 error
		m.Name, err1 = rec.unicode(g.as, o.BaseName)
		m.Path, err2 = rec.unicode(g.as, o.FullName)
		if err := errors.Join(err1, err2); err != nil {
			problems = append(problems, Problem{fmt.Sprintf("driver at %#x", m.Base), fmt.Errorf("read its name: %w", err)})
		}
		out = append(out, m)
		return true
	})
	if err != nil {
		if ctx.Err() != nil || len(out) == 0 {
			return nil, nil, fmt.Errorf("read the loaded module list: %w", err)
		}
		problems = append(problems, Problem{"loaded module list", err})
	}
	return out, problems, nil
}
