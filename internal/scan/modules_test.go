package scan

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"testing"

	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/ntguest"
	"vmav.dev/vmav/internal/pe"
	"vmav.dev/vmav/internal/winstruct"
	"vmav.dev/vmav/internal/winstruct/winstructtest"
)

// builds are those that the test guest is laid out as here, 32-bit ones last.
var builds = []string{"6.1.7601", "10.0.19041", "10.0.26100", "6.1.7601-x86", "6.1.7601-x86-pae", "10.0.19041-x86"}

// modules lays a guest out and rebuilds every module of every process from all that its
// memory holds.
func modules(t *testing.T, opts ntguest.Options, each func(p *introspect.Process, m *introspect.Module, img *pe.Image, opt pe.Options, f *pe.File,
	h *ntguest.Held)) {
	t.Helper()
	ctx := context.Background()
	machine, err := ntguest.Lay(opts)
	if err != nil {
		t.Fatal(err)
	}
	src := imageOf(t, machine)
	g, err := introspect.Open(ctx, src, winstructtest.With{Store: winstruct.BuiltIn(), Profile: machine.Profile()})
	if err != nil {
		t.Fatal(err)
	}
	procs, problems, err := g.Processes(ctx)
	if err != nil || len(problems) > 0 {
		t.Fatal(err, problems)
	}
	mappings, err := Survey(ctx, g, procs)
	if err != nil {
		t.Fatal(err)
	}
	c := NewCopier(g, mappings, NewFiles())
	var rb pe.Rebuilder
	for i := range procs {
		mods, _, err := g.Modules(ctx, &procs[i])
		if err != nil {
			t.Fatal(err)
		}
		for j := range mods {
			h, ok := machine.Held(procs[i].PID, mods[j].Base)
			if !ok {
				t.Fatalf("no image at %#x", mods[j].Base)
			}
			img, opt, err := c.Read(ctx, &procs[i], &mods[j])
			if err != nil {
				t.Fatal(err)
			}
			f, err := rb.Rebuild(img, opt)
			if err != nil {
				t.Errorf("pid %d, %s: %v", procs[i].PID, mods[j].Name, err)
				continue
			}
			each(&procs[i], &mods[j], img, opt, f, &h)
		}
	}
}

// TestEveryModuleIsItsFile rebuilds every module of every process of a guest with all
// pages in memory and compares it with its file: byte for byte.
func TestEveryModuleIsItsFile(t *testing.T) {
	for i, build := range builds {
		for _, cache := range []bool{false, true} {
			files, same, exact, whole := 0, 0, 0, 0
			opts := ntguest.Options{Build: build, Seed: uint64(i) + 20, FileCache: cache}
			modules(t, opts, func(p *introspect.Process, m *introspect.Module, _ *pe.Image, _ pe.Options, f *pe.File, h *ntguest.Held) {
				files++
				n := 0
				for o := range f.Data {
					if o >= len(h.File) || f.Data[o] != h.File[o] {
						n++
					}
				}
				if n == 0 {
					same++
				} else {
					t.Logf("%s: pid %d, %s: %d bytes differ", build, p.PID, m.Name, n)
				}
				if f.Fidelity.Exact() {
					if exact++; n != 0 {
						t.Errorf("%s: pid %d, %s: called exact, %d bytes differ", build, p.PID, m.Name, n)
					}
				}
				if bytes.Equal(f.Data, h.File) {
					whole++
				}
				if len(f.Fidelity.Conflicts) > 0 || len(f.Fidelity.MemoryOnly) > 0 {
					t.Errorf("%s: pid %d, %s: conflicts %v, memory only %v", build, p.PID, m.Name, f.Fidelity.Conflicts, f.Fidelity.MemoryOnly)
				}
			})
			t.Logf("%s, file cache %v: %d modules, %d byte-identical up to the overlay, %d with it, %d called exact", build, cache, files, same, whole, exact)
			if files < 100 || float64(same) < 0.995*float64(files) || float64(exact) < 0.9*float64(files) {
				t.Errorf("%s: of %d modules %d are byte-identical, %d exact", build, files, same, exact)
			}
		}
	}
}

// TestTrimmedModules trims pages at random, of mappings, sections and cached files
// alike. Every byte that the guest still holds anywhere is in the rebuilt file, and the
// record says of every other that it is missing.
func TestTrimmedModules(t *testing.T) {
	for i, trim := range []int{10, 30, 50, 70, 90} {
		for _, cache := range []bool{false, true} {
			build := builds[i%3]
			if cache {
				build = builds[len(builds)-1-i%3]
			}
			t.Run(fmt.Sprintf("%s/%d%%/cache=%v", build, trim, cache), func(t *testing.T) {
				var sum trimmed
				modules(t, ntguest.Options{Build: build, Seed: uint64(i), Trim: trim, FileCache: cache},
					func(p *introspect.Process, m *introspect.Module, img *pe.Image, opt pe.Options, f *pe.File, h *ntguest.Held) {
						sum.modules++
						if err := sum.check(f, h); err != nil {
							t.Errorf("pid %d, %s: %v", p.PID, m.Name, err)
						}
					})
				t.Logf("%d modules, %d bytes: %d held, of them %d restored and %d in doubt; %d not held, of them %d derived; "+
					"headers from %v, %d bases not proven",
					sum.modules, sum.bytes, sum.held, sum.held-sum.unknown, sum.unknown, sum.bytes-sum.held, sum.derived, sum.headers, sum.unproven)
				if sum.modules < 100 || sum.held == 0 || sum.held == sum.bytes || sum.unknown*50 > sum.held {
					t.Errorf("%+v", sum)
				}
			})
		}
	}
}

// TestTrimmedDrivers rebuilds drivers of which the kernel has freed what they needed at
// start, relocation tables with it, and paged out more: what is there is the file's or in
// doubt, and the rest is missing.
func TestTrimmedDrivers(t *testing.T) {
	ctx := context.Background()
	for i, build := range builds {
		for _, trim := range []int{0, 40} {
			m, err := ntguest.Lay(ntguest.Options{Build: build, Seed: uint64(i), Trim: trim})
			if err != nil {
				t.Fatal(err)
			}
			g, err := introspect.Open(ctx, imageOf(t, m), winstructtest.With{Store: winstruct.BuiltIn(), Profile: m.Profile()})
			if err != nil {
				t.Fatal(err)
			}
			drivers, _, err := g.Drivers(ctx)
			if err != nil {
				t.Fatal(err)
			}
			c := NewCopier(g, NewMappings(), NewFiles())
			var rb pe.Rebuilder
			var sum trimmed
			same, guessed, flat := 0, 0, 0
			for j := range drivers {
				h, ok := m.HeldDriver(drivers[j].Base)
				if !ok {
					continue // the kernel
				}
				img, opt, err := c.Read(ctx, nil, &drivers[j])
				if err != nil {
					t.Fatal(err)
				}
				f, err := rb.Rebuild(img, opt)
				if err != nil {
					t.Errorf("%s, %d %%: %s: %v", build, trim, drivers[j].Name, err)
					continue
				}
				sum.modules++
				guessed += f.Fidelity.Relocations.Guessed
				if f.Fidelity.Headers == pe.HeadersAnalysis { // their page is gone, and nothing else tells the layout
					if flat++; f.Fidelity.Complete() || f.Fidelity.Exact() {
						t.Errorf("%s, %d %%: %s: called complete without headers", build, trim, drivers[j].Name)
					}
					continue
				}
				if err := sum.check(f, &h); err != nil {
					t.Errorf("%s, %d %%: %s: %v", build, trim, drivers[j].Name, err)
				}
				if trim == 0 && len(f.Data) <= len(h.File) && bytes.Equal(f.Data, h.File[:len(f.Data)]) {
					same++
				}
			}
			t.Logf("%s, %d %%: %d drivers, %d byte-identical, %d relocations guessed, %d without headers; %+v", build, trim, sum.modules, same, guessed, flat,
				sum)
			if sum.modules < 8 || trim == 0 && same != sum.modules || trim != 0 && (guessed == 0 || sum.held == sum.bytes) {
				t.Errorf("%s, %d %%: %d drivers, %d byte-identical, %d relocations guessed", build, trim, sum.modules, same, guessed)
			}
		}
	}
}

// trimmed adds up what became of the bytes of trimmed modules.
type trimmed struct {
	modules                       int
	bytes, held, unknown, derived int
	unproven                      int // modules whose base is not, so that relocated words are as right as it is
	headers                       map[pe.HeaderSource]int
}

// check holds one rebuilt file and its record against what the memory holds.
func (s *trimmed) check(f *pe.File, h *ntguest.Held) error {
	if s.headers == nil {
		s.headers = make(map[pe.HeaderSource]int)
	}
	s.headers[f.Fidelity.Headers]++
	cause := make([]pe.Cause, len(f.Data))
	for _, g := range f.Fidelity.Gaps {
		for o := g.Start; o < g.End; o++ {
			cause[o] = g.Cause
		}
	}
	place := places(f, h)
	var moved map[int]bool
	if !f.Fidelity.Base.Proven {
		moved = relocated(h.File)
		s.unproven++
	}
	var missing uint64
	for o := range f.Data {
		if o >= len(h.File) {
			return fmt.Errorf("%d bytes, the file has %d", len(f.Data), len(h.File))
		}
		held := h.Cached != nil && h.Cached[o/pe.PageSize]
		page := place[o]
		if page >= 0 {
			held = held || h.Shared[page] || h.Own[page] || h.Elsewhere[page] && !h.Writable[page]
		}
		s.bytes++
		if held {
			s.held++
		}
		equal := f.Data[o] == h.File[o]
		switch c := cause[o]; {
		case c == "":
			if !equal && (f.Fidelity.Base.Proven || !moved[o]) {
				return fmt.Errorf("byte at %#x is wrong and called known (held %v)", o, held)
			}
			if !held {
				s.derived++
			}
		case c == pe.CauseMissing || c == pe.CauseOverlay:
			if missing++; held {
				return fmt.Errorf("byte at %#x is held and called missing", o)
			}
		case c == pe.CauseUnmapped:
			if held {
				return fmt.Errorf("byte at %#x is held and called never mapped", o)
			}
		case held:
			s.unknown++
		}
	}
	if b := f.Fidelity.Bytes; b.Missing+b.Overlay != missing {
		return fmt.Errorf("%d bytes are missing, the record says %d", missing, b.Missing+b.Overlay)
	}
	return nil
}

// places finds the page that each byte of the file is mapped on; -1 for none.
func places(f *pe.File, h *ntguest.Held) []int {
	out := make([]int, len(f.Data))
	for o := range out {
		out[o] = -1
	}
	hdr, err := pe.ParseHeaders(h.File)
	if err != nil {
		return out
	}
	set := func(off, rva, n uint64) {
		for i := uint64(0); i < n && off+i < uint64(len(out)); i++ {
			if p := (rva + i) / pe.PageSize; p < uint64(len(h.Shared)) {
				out[off+i] = int(p)
			}
		}
	}
	set(0, 0, uint64(hdr.SizeOfHeaders))
	for _, s := range hdr.Sections {
		if s.RawOffset != 0 {
			set(uint64(s.RawOffset), uint64(s.VirtualAddress), min(uint64(s.RawSize), (uint64(s.VirtualSize)+pe.PageSize-1)&^(pe.PageSize-1)))
		}
	}
	return out
}

// relocated marks the bytes of a file that depend on where it is linked to: those its
// base relocations name, and the header's ImageBase.
func relocated(file []byte) map[int]bool {
	le := binary.LittleEndian
	h, err := pe.ParseHeaders(file)
	if err != nil {
		return nil
	}
	out := make(map[int]bool)
	offset := func(rva uint32) int {
		for _, s := range h.Sections {
			if rva >= s.VirtualAddress && rva-s.VirtualAddress < s.RawSize {
				return int(s.RawOffset + rva - s.VirtualAddress)
			}
		}
		return -1
	}
	mark := func(at, n int) {
		for i := range n {
			out[at+i] = true
		}
	}
	mark(int(le.Uint32(file[0x3c:]))+24+24, 8)
	d := h.Dirs[5]
	at := offset(d.RVA)
	for end := at + int(d.Size); at > 0 && at+8 <= end; {
		page, size := le.Uint32(file[at:]), int(le.Uint32(file[at+4:]))
		for e := at + 8; e+2 <= at+size; e += 2 {
			v := le.Uint16(file[e:])
			switch v >> 12 {
			case 3:
				mark(offset(page+uint32(v&0xfff)), 4)
			case 10:
				mark(offset(page+uint32(v&0xfff)), 8)
			}
		}
		if size < 8 {
			break
		}
		at += size
	}
	return out
}
