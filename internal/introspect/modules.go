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

// Offsets in the 32-bit loader structures of a wow64 process. Kernel symbols do not contain
// these structures, and no build changed them (Windows Internals; ntdll.dll's symbols).
const (
	ldr32Load, ldr32Memory, ldr32Init       = 0x0c, 0x14, 0x1c
	entry32Load, entry32Memory, entry32Init = 0x00, 0x08, 0x10
	entry32Base, entry32Entry, entry32Image = 0x18, 0x1c, 0x20
	entry32Full, entry32Name                = 0x24, 0x2c
	entry32Size                             = 0x34
)

// Modules lists the images of a process in the order of their addresses: those on its
// loader lists, 64-bit and 32-bit, and image ranges of its address space that are on no
// list. A process that has exited or has no user part has none. What could not be read
// comes back as problems; only the end of ctx is an error.
func (g *Guest) Modules(ctx context.Context, p *Process) ([]Module, []Problem, error) {
	mods, _, problems, err := g.ModulesAndVADs(ctx, p)
	return mods, problems, err
}

// ModulesAndVADs returns the images as Modules does, and all ranges of the process as VADs
// does.
func (g *Guest) ModulesAndVADs(ctx context.Context, p *Process) ([]Module, []VAD, []Problem, error) {
	if p.PEB == 0 || !p.Exited.IsZero() {
		return nil, nil, nil, nil
	}
	what := fmt.Sprintf("process %d (%s)", p.PID, p.Name)
	as := g.space(p.DTB)
	found := make(map[uint64]*Module)
	var problems []Problem
	note := func(doing string, err error) {
		if err != nil {
			problems = append(problems, Problem{What: what, Err: fmt.Errorf("%s: %w", doing, err), Process: p.Identity()})
		}
	}
	native := g.nativeLoader(as)
	note(fmt.Sprintf("%d-bit loader lists", 8*as.ptr), native.addModules(ctx, p.PEB, found))
	if p.PEB32 != 0 && g.off.PEB32.Ldr != winstruct.Missing {
		wow64 := g.wow64Loader(as)
		note("32-bit loader lists", wow64.addModules(ctx, p.PEB32, found))
	}
	if err := ctx.Err(); err != nil {
		return nil, nil, nil, err
	}
	vads, probs, err := g.VADs(ctx, p)
	if ctx.Err() != nil {
		return nil, nil, nil, ctx.Err()
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
	return out, vads, problems, nil
}

// loader has the offsets of a loader's structures and the address space in which they lie.
type loader struct {
	as                 *AddressSpace
	ldr                uint32 // in the PEB
	heads, links       [3]uint32
	size               uint32 // of an entry
	base, image, entry uint32
	original           uint32 // winstruct.Missing if the loader does not record it
	full, name         uint32
	wow64              bool
}

// nativeLoader returns the loader of the guest's own pointer size.
func (g *Guest) nativeLoader(as *AddressSpace) loader {
	o := &g.off.Entry
	return loader{as: as, ldr: g.off.PEB.Ldr, heads: [3]uint32{g.off.Ldr.Load, g.off.Ldr.Memory, g.off.Ldr.Init},
		links: [3]uint32{o.Load, o.Memory, o.Init}, size: o.Size, base: o.Base, image: o.Image, entry: o.Entry, original: o.Original,
		full: o.FullName, name: o.BaseName}
}

// wow64Loader returns the 32-bit loader of a 64-bit guest.
func (g *Guest) wow64Loader(as *AddressSpace) loader {
	return loader{as: as.as32(), ldr: g.off.PEB32.Ldr, heads: [3]uint32{ldr32Load, ldr32Memory, ldr32Init},
		links: [3]uint32{entry32Load, entry32Memory, entry32Init}, size: entry32Size, base: entry32Base, image: entry32Image, entry: entry32Entry,
		original: winstruct.Missing, full: entry32Full, name: entry32Name, wow64: true}
}

// addModules adds the modules on the three lists of the loader that a PEB refers to. The lists
// are in the process's own memory, and it can cut any of them. The program of a wow64
// process is on the lists of both loaders.
func (l *loader) addModules(ctx context.Context, peb uint64, found map[uint64]*Module) error {
	ldr, err := l.as.word(peb + uint64(l.ldr))
	if err != nil {
		return fmt.Errorf("read PEB at %#x: %w", peb, err)
	}
	if ldr == 0 {
		return nil // the process has just started
	}
	rec := l.as.newRecord(l.size)
	var errs []error
	for i, head := range l.heads {
		errs = append(errs, l.as.walkList(ctx, ldr+uint64(head), 0, maxModules, func(entry uint64) bool {
			at := entry - uint64(l.links[i])
			if err := l.as.Read(rec.b, at); err != nil {
				errs = append(errs, fmt.Errorf("loader entry at %#x: %w", at, err))
				return true
			}
			base := rec.ptr(l.base)
			if m := found[base]; base == 0 || m != nil {
				if m != nil && l.wow64 {
					m.Wow64 = true
				}
				return true
			}
			m := &Module{Base: base, Size: uint64(rec.u32(l.image)), EntryPoint: rec.ptr(l.entry), Wow64: l.wow64, Flags: []string{}}
			if l.original != winstruct.Missing {
				m.OriginalBase = rec.ptr(l.original)
			}
			var err1, err2 error
			m.Name, err1 = rec.unicode(l.as, l.name)
			m.Path, err2 = rec.unicode(l.as, l.full)
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

// Drivers lists the kernel and its drivers in load order. What could not be read comes back
// as problems; it is an error if nothing could.
func (g *Guest) Drivers(ctx context.Context) ([]Module, []Problem, error) {
	o := &g.off.Driver
	var out []Module
	var problems []Problem
	if g.off.Sym.LoadedModuleList == 0 {
		return nil, []Problem{{What: "loaded module list", Err: errors.New("where it lies could not be proven: drivers are not listed")}}, nil
	}
	rec := g.as.newRecord(o.Size)
	err := g.as.walkList(ctx, g.kernel.Base+g.off.Sym.LoadedModuleList, 0, maxModules, func(entry uint64) bool {
		at := entry - uint64(o.Links)
		if err := g.as.Read(rec.b, at); err != nil {
			problems = append(problems, Problem{What: fmt.Sprintf("driver entry at %#x", at), Err: err})
			return true
		}
		m := Module{Base: rec.ptr(o.Base), Size: uint64(rec.u32(o.Image)), Flags: []string{}}
		var err1, err2 error
		m.Name, err1 = rec.unicode(g.as, o.BaseName)
		m.Path, err2 = rec.unicode(g.as, o.FullName)
		if err := errors.Join(err1, err2); err != nil {
			problems = append(problems, Problem{What: fmt.Sprintf("driver at %#x", m.Base), Err: fmt.Errorf("read its name: %w", err)})
		}
		out = append(out, m)
		return true
	})
	if err != nil {
		if ctx.Err() != nil || len(out) == 0 {
			return nil, nil, fmt.Errorf("read the loaded module list: %w", err)
		}
		problems = append(problems, Problem{What: "loaded module list", Err: err})
	}
	return out, problems, nil
}
