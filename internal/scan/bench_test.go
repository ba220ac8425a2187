package scan

import (
	"context"
	"testing"

	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/ntguest"
	"vmav.dev/vmav/internal/pe"
	"vmav.dev/vmav/internal/winstruct"
)

// BenchmarkEveryModule reads every module of every process of a guest, with all that its
// memory holds of their files; reads and rebuilds them; and copies as many bytes within the
// process.
func BenchmarkEveryModule(b *testing.B) {
	ctx := context.Background()
	machine, err := ntguest.Lay(ntguest.Options{Build: "10.0.19041", Seed: 3, FileCache: true})
	if err != nil {
		b.Fatal(err)
	}
	g, err := introspect.Open(ctx, imageOf(b, machine), winstruct.BuiltIn())
	if err != nil {
		b.Fatal(err)
	}
	procs, _, err := g.Processes(ctx)
	if err != nil {
		b.Fatal(err)
	}
	mappings, err := Survey(ctx, g, procs)
	if err != nil {
		b.Fatal(err)
	}
	size, largest := 0, 0
	modules := func(c *Copier, do func(*pe.Image, pe.Options)) {
		for i := range procs {
			mods := mappings.modules[procs[i].EPROCESS]
			for j := range mods {
				img, opt, err := c.Read(ctx, &procs[i], &mods[j])
				if err != nil {
					b.Fatal(err)
				}
				do(img, opt)
			}
		}
	}
	modules(NewCopier(g, mappings, NewFiles()), func(img *pe.Image, _ pe.Options) {
		size, largest = size+len(img.Mem), max(largest, len(img.Mem))
	})
	var rb pe.Rebuilder
	for _, way := range []struct {
		name string
		do   func(*pe.Image, pe.Options)
	}{
		{"read", func(*pe.Image, pe.Options) {}},
		{"read and rebuild", func(img *pe.Image, opt pe.Options) {
			if _, err := rb.Rebuild(img, opt); err != nil {
				b.Fatal(err)
			}
		}},
	} {
		b.Run(way.name, func(b *testing.B) {
			b.SetBytes(int64(size))
			b.ReportAllocs()
			c := NewCopier(g, mappings, NewFiles())
			for range b.N {
				modules(c, way.do)
			}
		})
	}
	b.Run("copy", func(b *testing.B) {
		from, to := make([]byte, largest), make([]byte, largest)
		b.SetBytes(int64(size))
		for range b.N {
			for left := size; left > 0; left -= largest {
				copy(to[:min(left, largest)], from)
			}
		}
	})
}
