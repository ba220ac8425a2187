package scan

import (
	"context"
	"encoding/binary"
	"strings"
	"sync"
	"testing"

	"vmav.dev/vmav/internal/clam/answer"
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/ntguest"
	"vmav.dev/vmav/internal/pe"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/winstruct"
)

// hole is a guest with a page that cannot be read.
type hole struct {
	source.Source
	page uint64
}

func (h *hole) ReadPhys(p []byte, addr uint64) error {
	if addr < h.page+pe.PageSize && h.page < addr+uint64(len(p)) {
		return &source.AccessError{Addr: h.page, Size: pe.PageSize, Err: source.ErrHole}
	}
	return h.Source.ReadPhys(p, addr)
}

// TestAProcessThatComesOrGoesIsNoGap scans a guest in which the PEB of a process cannot be
// read when it is looked at first, or its program when it is scanned.
func TestAProcessThatComesOrGoesIsNoGap(t *testing.T) {
	clean := &refusing{n: -1 << 30, res: answer.Result{}}
	whole, _ := guest(t, ntguest.Options{Build: "10.0.19041", Seed: 8})
	g, err := introspect.Open(context.Background(), whole, winstruct.BuiltIn())
	if err != nil {
		t.Fatal(err)
	}
	procs, _, err := g.Processes(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	var p *introspect.Process
	for i := range procs {
		if procs[i].Name == "explorer.exe" {
			p = &procs[i]
		}
	}
	profile, err := winstruct.BuiltIn().Find(g.Kernel().Identity)
	if err != nil {
		t.Fatal(err)
	}
	// put writes a word of the process's object.
	put := func(e *edited, field string, v uint64) {
		f, err := profile.Field("_EPROCESS", field)
		if err != nil {
			t.Fatal(err)
		}
		at := kernelWord(t, g, p.EPROCESS+uint64(f.Offset))
		page := e.page(t, at&^(pe.PageSize-1))
		e.mu.Lock()
		defer e.mu.Unlock()
		binary.LittleEndian.PutUint64(page[at%pe.PageSize:], v)
	}
	const exitTime = 0x01db000000000000
	ends := func(e *edited) { put(e, "ExitTime", exitTime) }
	unmapped := func(e *edited) { put(e, "Peb", 0x7ffdead00000) }
	header, err := g.Space(p).Translate(p.SectionBase)
	if err != nil {
		t.Fatal(err)
	}
	want := again(t, whole, clean, NewCache(), options{MinCoverage: 1})
	if want.Status != finding.StatusScanned || want.Ended != 0 {
		t.Fatalf("the guest as it is: %s, %d ended, %v", want.Status, want.Ended, want.Errors)
	}

	for _, c := range []struct {
		name   string
		first  func(*edited) // before the scan
		moment func(*edited) // while it waits
		lost   bool          // a page of its program cannot be read
		middle func(*edited) // while it scans
		paused bool
		image  bool
		status string
		ended  int
	}{
		{name: "being made", first: unmapped, moment: func(e *edited) { put(e, "Peb", p.PEB) }, status: finding.StatusScanned},
		{name: "ends when it is looked at", first: unmapped, moment: ends, status: finding.StatusScanned, ended: 1},
		{name: "stays so", first: unmapped, moment: func(*edited) {}, status: finding.StatusIncomplete},
		{name: "stands still", first: unmapped, moment: ends, paused: true, status: finding.StatusIncomplete},
		{name: "an image stands still", first: unmapped, moment: ends, image: true, status: finding.StatusIncomplete},
		{name: "ends in mid-scan", lost: true, middle: ends, status: finding.StatusScanned, ended: 1},
		{name: "loses its memory in mid-scan", lost: true, middle: func(*edited) {}, status: finding.StatusIncomplete},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := edit(whole)
			if c.lost {
				e = edit(&hole{whole, header &^ (pe.PageSize - 1)})
			}
			if c.first != nil {
				c.first(e)
			}
			target := Target{Name: "win", Source: source.NewCache(e, 256), Domain: asked(func() bool {
				if !c.paused {
					c.moment(e)
				}
				return c.paused
			})}
			if c.image {
				target.State = StateImage
			}
			var once sync.Once
			opt := options{Jobs: 1, MinCoverage: 1, Progress: func(Progress) {
				if c.middle != nil {
					once.Do(func() { c.middle(e) })
				}
			}}
			got, err := look(context.Background(), target, builtIn(clean, NewCache()), opt)
			if err != nil || got.Status != c.status || got.Ended != c.ended || got.Processes != want.Processes {
				t.Fatalf("%v: %s, %d of %d processes ended, %v", err, got.Status, got.Ended, got.Processes, got.Errors)
			}
			if c.status == finding.StatusScanned && c.ended == 0 && got.Images != want.Images {
				t.Errorf("%d images, not %d", got.Images, want.Images)
			}
			for _, e := range got.Errors {
				if !strings.Contains(e.What, p.Name) {
					t.Errorf("%s: %s", e.What, e.Error)
				}
			}
		})
	}
}

// asked is a domain that says by a call whether it is paused.
type asked func() bool

func (a asked) Paused() bool { return a() }
