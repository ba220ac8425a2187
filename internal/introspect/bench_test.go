package introspect

import (
	"context"
	"testing"

	"vmav.dev/vmav/internal/ntguest"
)

func benchGuest(b *testing.B) *Guest {
	b.Helper()
	return open(b, lay(b, ntguest.Options{Build: "10.0.19041", Seed: 1}))
}

func BenchmarkTranslate(b *testing.B) {
	g := benchGuest(b)
	va := g.kernel.Base
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if _, _, err := g.as.translate(va); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReadPage(b *testing.B) {
	g := benchGuest(b)
	buf := make([]byte, pageSize)
	b.SetBytes(pageSize)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if err := g.as.Read(buf, g.kernel.Base); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReadImage copies ntdll.dll page by page: its allocations are a few for an
// image, none for a page.
func BenchmarkReadImage(b *testing.B) {
	g := benchGuest(b)
	procs, _, err := g.Processes(context.Background())
	if err != nil {
		b.Fatal(err)
	}
	p := &procs[len(procs)-5]
	mods, _, err := g.Modules(context.Background(), p)
	if err != nil {
		b.Fatal(err)
	}
	m := &mods[0]
	for i := range mods {
		if mods[i].Size > m.Size {
			m = &mods[i]
		}
	}
	mem, origins := make([]byte, m.Size), make([]PageOrigin, m.Size/pageSize)
	b.SetBytes(int64(m.Size))
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		if err := g.ReadImage(context.Background(), p, m.VAD(), m.Base, mem, origins); err != nil {
			b.Fatal(err)
		}
	}
}

func TestTheHotPathDoesNotAllocate(t *testing.T) {
	g := open(t, lay(t, ntguest.Options{Build: "10.0.19041", Seed: 1}))
	buf := make([]byte, pageSize)
	for name, f := range map[string]func() error{
		"translate": func() error { _, _, err := g.as.translate(g.kernel.Base); return err },
		"read page": func() error { return g.as.Read(buf, g.kernel.Base) },
	} {
		if n := testing.AllocsPerRun(200, func() {
			if err := f(); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}
