package live

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"vmav.dev/vmav/internal/clam"
	"vmav.dev/vmav/internal/domain"
	"vmav.dev/vmav/internal/e2e/harness"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/scan"
	"vmav.dev/vmav/internal/scan/scantest"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/source/image"
	"vmav.dev/vmav/internal/winstruct"
)

// sources opens one guest both ways: running, and as an image file.
func sources(b *testing.B) map[string]source.Source {
	b.Helper()
	g := harness.Start(b, "10.0.19041")
	h, err := domain.Connect(harness.URI)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { h.Close() })
	d, err := h.Find(g.Name)
	if err != nil {
		b.Fatal(err)
	}
	live, err := h.Open(context.Background(), d)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { live.Close() })
	file := filepath.Join(b.TempDir(), "guest.raw")
	if out, err := exec.Command(harness.Bin(b, "ntguest"), "image", "--out", file).CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	saved, err := image.Open(file)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { saved.Close() })
	return map[string]source.Source{"qemu": live, "image": saved}
}

// BenchmarkRead reads 64 MiB of a guest in pieces of 1 MiB, through each source and as a
// plain copy of the same bytes.
func BenchmarkRead(b *testing.B) {
	const from, size, piece = 16 << 20, 64 << 20, 1 << 20
	all := sources(b)
	buf := make([]byte, piece)
	for _, name := range []string{"qemu", "image"} {
		s := all[name]
		b.Run(name, func(b *testing.B) {
			b.SetBytes(size)
			b.ReportAllocs()
			for range b.N {
				for off := uint64(0); off < size; off += piece {
					if err := s.ReadPhys(buf, from+off); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
	same := make([]byte, size)
	if err := all["image"].ReadPhys(same, from); err != nil {
		b.Fatal(err)
	}
	b.Run("copy", func(b *testing.B) {
		b.SetBytes(size)
		for range b.N {
			for off := 0; off < size; off += piece {
				copy(buf, same[off:])
			}
		}
	})
}

// BenchmarkPages reads single pages in batches, as images are copied.
func BenchmarkPages(b *testing.B) {
	all := sources(b)
	for _, name := range []string{"qemu", "image"} {
		s := all[name]
		b.Run(name, func(b *testing.B) {
			var reqs [128]source.Request
			mem := make([]byte, len(reqs)*source.PageSize)
			b.SetBytes(int64(len(mem)))
			b.ReportAllocs()
			for n := range b.N {
				for i := range reqs {
					pfn := uint64(4096 + (n*131+i*7919)%16384)
					reqs[i] = source.Request{Addr: pfn * source.PageSize, P: mem[i*source.PageSize : (i+1)*source.PageSize]}
				}
				if err := source.ReadBatch(s, reqs[:]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkLists lists processes, and the modules of all of them.
func BenchmarkLists(b *testing.B) {
	all := sources(b)
	for _, name := range []string{"qemu", "image"} {
		g, err := introspect.Open(context.Background(), source.NewCache(all[name], 4096), winstruct.BuiltIn())
		if err != nil {
			b.Fatal(err)
		}
		b.Run(name+"/processes", func(b *testing.B) {
			n := 0
			for range b.N {
				procs, _, err := g.Processes(context.Background())
				if err != nil {
					b.Fatal(err)
				}
				n += len(procs)
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "processes/s")
		})
		b.Run(name+"/modules", func(b *testing.B) {
			procs, _, err := g.Processes(context.Background())
			if err != nil {
				b.Fatal(err)
			}
			b.ResetTimer()
			n := 0
			for range b.N {
				for i := range procs {
					mods, _, err := g.Modules(context.Background(), &procs[i])
					if err != nil {
						b.Fatal(err)
					}
					n += len(mods)
				}
			}
			b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "modules/s")
		})
	}
}

// BenchmarkScan is a full scan of a running guest, split by stage. Rebuild and scan are
// the sums over the workers.
func BenchmarkScan(b *testing.B) {
	live := sources(b)["qemu"]
	e, err := clam.Open(context.Background(), clam.Options{Databases: []string{harness.Database(b)}, TempDir: os.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer e.Close()
	b.ResetTimer()
	stages := make(map[string]float64)
	for range b.N {
		d, err := scantest.Scan(context.Background(), scan.InProcess{Means: scantest.Means(e)}, scan.Target{Name: "bench", Source: source.NewCache(live, 4096)},
			scan.Request{MinCoverage: scan.DefaultMinCoverage})
		if err != nil || len(d.Findings) == 0 {
			b.Fatalf("%+v, %v", d, err)
		}
		stages["locate"] += d.Timing.Locate
		stages["enumerate"] += d.Timing.Enumerate
		stages["rebuild"] += d.Timing.Rebuild
		stages["scan"] += d.Timing.Scan
	}
	for name, s := range stages {
		b.ReportMetric(1000*s/float64(b.N), name+"-ms/op")
	}
}
