package introspect

import (
	"bytes"
	"context"
	"testing"

	"vmav.dev/vmav/internal/ntguest"
	"vmav.dev/vmav/internal/winstruct"
)

// FuzzSections changes words of what leads to a file: address space descriptors, control
// areas, subsections, file objects, section object pointers, cache maps and prototype
// entries. Everything ends, and what is returned is within bounds.
func FuzzSections(f *testing.F) {
	s := lay(f, ntguest.Options{Build: "10.0.22000", Seed: 6, MemoryMiB: 256, FileCache: true, Implants: true})
	g := open(f, s)
	ctx := context.Background()
	var places []uint64
	add := func(va uint64, size uint64) {
		for off := uint64(0); off < size; off += 8 {
			if pa, err := g.as.Translate(va + off); err == nil {
				places = append(places, pa&^7)
			}
		}
	}
	procs, _, err := g.Processes(ctx)
	if err != nil {
		f.Fatal(err)
	}
	var pids []uint64
	for i := range procs {
		p := &procs[i]
		if n := p.Name; n != "winver.exe" && n != "packed.exe" {
			continue
		}
		pids = append(pids, p.PID)
		root, _ := g.as.word(p.EPROCESS + uint64(g.off.VAD.TreeRoot))
		add(root, 0x100)
		mods, _, err := g.Modules(ctx, p)
		if err != nil {
			f.Fatal(err)
		}
		for _, m := range mods {
			v := m.VAD()
			add(v.control, uint64(g.off.Control.Size)+4*uint64(g.off.Subsection.Size))
			add(v.proto, 0x80)
			add(v.file, 0x60)
			pointers, _ := g.as.word(v.file + uint64(g.off.FilePointers))
			add(pointers, uint64(g.off.Pointers.Size))
			data, _ := g.as.word(pointers + uint64(g.off.Pointers.Data))
			add(data, uint64(g.off.Control.Size)+uint64(g.off.Subsection.Size))
			cache, _ := g.as.word(pointers + uint64(g.off.Pointers.Cache))
			add(cache, 0x80)
		}
	}
	f.Add(bytes.Repeat([]byte{0x11, 3, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}, 3))
	f.Add(bytes.Repeat([]byte{0x42, 7, 5, 0, 0, 0, 0, 0, 0, 0, 0x17, 9, 0, 0, 0, 0, 0, 0, 0, 0}, 2))
	// A cache map of more bytes than 64 bits of levels cover.
	f.Add([]byte("\x11\x03\xff\xff\xff\xff\xca\xca\xca\xd5\xca\x03\xff\xff\xff\xff\x03\x17\x17\x17\x17\x17\x17\x17\xff\xff\xff\xff\xff\xff\xff\x7f"))
	f.Fuzz(func(t *testing.T, data []byte) {
		// Other places hold structures of the same kind, or of another.
		p := s.patched(data, places, 16, s.Word)
		g, err := Open(ctx, p, winstruct.BuiltIn())
		if err != nil {
			return
		}
		for i := range procs {
			if procs[i].PID != pids[0] && procs[i].PID != pids[1] {
				continue
			}
			inspectSections(t, g, &procs[i])
		}
	})
}

// inspectSections reads what there is of each range of a process: an error gives no
// result, and a result is within bounds.
func inspectSections(t *testing.T, g *Guest, p *Process) {
	const limit = 1 << 20
	ctx := context.Background()
	vads, _, err := g.VADs(ctx, p)
	if err != nil {
		return
	}
	budget := RegionTables
	for i := range vads {
		v := &vads[i]
		subs, err := g.Subsections(v)
		if err != nil && subs != nil || len(subs) > maxSubsections {
			t.Fatalf("%d subsections with error %v", len(subs), err)
		}
		if v.FileObject() != 0 {
			_, frames, err := g.FileFrames(ctx, v.FileObject(), limit)
			if err != nil && frames != nil || len(frames)*pageSize > limit {
				t.Fatalf("%d pages of a cached file with error %v", len(frames), err)
			}
		}
		section := make([]Frame, min((v.End-v.Start)/pageSize+1, 1<<12))
		own := make([]Frame, len(section))
		if n, err := g.SectionFrames(v, section); err != nil && n != 0 || n > len(section) {
			t.Fatalf("%d pages of a section with error %v", n, err)
		} else if err := g.ImageFrames(ctx, p, v.Start, own, v.Start, section[:n]); err == nil {
			for _, f := range own {
				if f.Origin == pagePagedOut {
					t.Fatal("a page in a page file is nobody's to see")
				}
			}
		}
		runs, _, err := g.Committed(ctx, p, v, &budget)
		if err != nil && runs != nil || len(runs) > maxRegionRuns+1 {
			t.Fatalf("%d runs with error %v", len(runs), err)
		}
		last := v.Start
		for _, r := range runs {
			if r.Start < last || r.End <= r.Start || r.End-1 > v.End {
				t.Fatalf("run %+v in %#x-%#x", r, v.Start, v.End)
			}
			last = r.End
		}
	}
}
