package introspect

import (
	"errors"
	"fmt"
	"strings"

	"vmav.dev/vmav/internal/winstruct"
)

// proveVADs checks the VAD trees of some processes: the PEB must be in private memory, and
// the program in a mapped image whose file has the process's name and whose first page is
// the section's.
func (p *prover) proveVADs() error {
	g := p.g
	var tree, image, private, file, proto tally
	for i := range p.samples {
		s := &p.samples[i]
		if s.peb == 0 || tree.good+tree.bad == deepProofs {
			continue
		}
		proc := Process{PID: s.pid, Name: s.name, EPROCESS: s.at, DTB: s.as.dtb}
		vads, problems, err := g.VADs(p.ctx, &proc)
		sound := err == nil && len(vads) > 1
		for _, pr := range problems {
			sound = sound && errors.Is(pr, ErrNotPresent) // what is paged out proves nothing
		}
		for j := 1; sound && j < len(vads); j++ {
			sound = vads[j-1].End < vads[j].Start
		}
		tree.add(sound)
		if !sound {
			continue
		}
		var ofPEB *VAD
		for j := range vads {
			v := &vads[j]
			if v.Start <= s.peb && s.peb <= v.End {
				ofPEB = v
			}
			if v.Start == s.base {
				s.image = v
			}
		}
		private.add(ofPEB != nil && ofPEB.Private && !ofPEB.Image())
		if s.image == nil {
			image.bad++
			continue
		}
		v := s.image
		pages := (v.End + 1 - v.Start) / pageSize
		image.add(v.Image() && !v.Private && v.Protection == 7 && p.kernelPointer(v.proto) && v.lastProto >= v.proto &&
			(v.lastProto-v.proto)/g.as.f.pte+1 >= pages &&
			(v.lastProto-v.proto)/g.as.f.pte <= 2*pages+64)
		if v.Path != "" {
			file.add(strings.HasPrefix(v.Path, `\`) && sameName(v.Path, s.name))
		}
		// A process seldom writes to the header of an image, so that page is the section's.
		if pa, origin, err := s.as.translate(s.base); err == nil && origin == PageResident {
			if section, origin, err := s.as.prototype(v.proto, s.base); err == nil && origin != PageAbsent && section == pa {
				proto.good++
			}
		}
		s.vads = vads
	}
	return errors.Join(tree.required("_EPROCESS.VadRoot", 2), private.required("_MMVAD_FLAGS.PrivateMemory", 2), image.required("_MMVAD of a program", 2),
		file.required("the file of a _MMVAD", 2), proto.required("_MMVAD.FirstPrototypePte", 1))
}

// proveLoader checks the three loader lists against the images that are mapped.
func (p *prover) proveLoader() error {
	g, o := p.g, &p.g.off.Entry
	lists := []struct {
		what       string
		head, link uint32
		tally
	}{{"InLoadOrderLinks", g.off.Ldr.Load, o.Load, tally{}}, {"InMemoryOrderLinks", g.off.Ldr.Memory, o.Memory, tally{}},
		{"InInitializationOrderLinks", g.off.Ldr.Init, o.Init, tally{}}}
	var names, original tally
	rec := g.as.newRecord(o.Size)
	for i := range p.samples {
		s := &p.samples[i]
		if s.vads == nil {
			continue
		}
		size := make(map[uint64]uint64)
		for j := range s.vads {
			if v := &s.vads[j]; v.Image() {
				size[v.Start] = v.End + 1 - v.Start
			}
		}
		ldr, err := s.as.word(s.peb + uint64(g.off.PEB.Ldr))
		if err != nil || ldr == 0 {
			continue
		}
		for k := range lists {
			l := &lists[k]
			n, absent, sound := 0, false, true
			err := s.as.walkList(p.ctx, ldr+uint64(l.head), 0, maxModules, func(entry uint64) bool {
				if err := s.as.Read(rec.b, entry-uint64(l.link)); err != nil {
					absent = true
					return false
				}
				n++
				base := rec.ptr(o.Base)
				sound = sound && size[base] != 0 && uint64(rec.u32(o.Image)) == size[base]
				if base == s.base {
					name, err := rec.unicode(s.as, o.BaseName)
					full, ferr := rec.unicode(s.as, o.FullName)
					if !errors.Is(errors.Join(err, ferr), ErrNotPresent) {
						names.add(err == nil && ferr == nil && sameName(name, s.name) && strings.HasSuffix(full, `\`+name))
					}
				}
				if o.Original != winstruct.Missing {
					at := rec.ptr(o.Original)
					original.add(at != 0 && at&0xffff == 0 && g.as.f.user(at))
				}
				return sound
			})
			if absent || errors.Is(err, ErrNotPresent) {
				continue
			}
			l.add(err == nil && sound && n > 0)
		}
	}
	var errs []error
	for _, l := range lists {
		errs = append(errs, l.required("_LDR_DATA_TABLE_ENTRY."+l.what, 2))
	}
	if o.Original != winstruct.Missing {
		p.optional("_LDR_DATA_TABLE_ENTRY.OriginalBase", original, 2, func() { o.Original = winstruct.Missing })
	}
	return errors.Join(append(errs, names.required("_LDR_DATA_TABLE_ENTRY.BaseDllName", 2))...)
}

// proveDrivers checks the list of loaded modules, which the kernel exports. Its first entry
// must be the kernel's own image.
func (p *prover) proveDrivers() error {
	g, o := p.g, &p.g.off.Driver
	if g.off.Sym.LoadedModuleList == 0 {
		p.unproven = append(p.unproven, "PsLoadedModuleList")
		return nil
	}
	rec := g.as.newRecord(o.Size)
	var first, others tally
	err := g.as.walkList(p.ctx, g.kernel.Base+g.off.Sym.LoadedModuleList, 0, maxModules, func(entry uint64) bool {
		if err := g.as.Read(rec.b, entry-uint64(o.Links)); err != nil {
			others.bad++
			return true
		}
		name, err := rec.unicode(g.as, o.BaseName)
		full, ferr := rec.unicode(g.as, o.FullName)
		if errors.Is(err, ErrNotPresent) || errors.Is(ferr, ErrNotPresent) {
			return true
		}
		base, size := rec.ptr(o.Base), rec.u32(o.Image)
		if first.good+first.bad == 0 {
			first.add(base == g.kernel.Base && size == g.kernel.Size && strings.EqualFold(name, "ntoskrnl.exe"))
			return true
		}
		named := err == nil && ferr == nil && name != "" && strings.HasSuffix(strings.ToLower(full), `\`+strings.ToLower(name))
		others.add(named && g.as.f.kernelImage(base) && base%pageSize == 0 && size != 0 && size%pageSize == 0)
		return true
	})
	if err != nil {
		return fmt.Errorf("_KLDR_DATA_TABLE_ENTRY: %w", err)
	}
	return errors.Join(first.required("_KLDR_DATA_TABLE_ENTRY of the kernel", 1), others.required("_KLDR_DATA_TABLE_ENTRY", 1))
}
