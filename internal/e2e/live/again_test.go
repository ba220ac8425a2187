package live

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmav.dev/vmav/internal/clam"
	"vmav.dev/vmav/internal/domain"
	"vmav.dev/vmav/internal/e2e/harness"
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/scan"
	"vmav.dev/vmav/internal/scan/scantest"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/winstruct"
)

// openSource opens a running guest.
func openSource(b testing.TB, h *domain.Host, name string) source.Source {
	b.Helper()
	d, err := h.Find(name)
	if err != nil {
		b.Fatal(err)
	}
	s, err := h.Open(context.Background(), d)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	return s
}

// signatures writes a database of the size of ClamAV's official one: as many signatures,
// of the kinds that it has most of, with content by chance. Beside them it has the test's.
func signatures(b testing.TB) string {
	b.Helper()
	dir := b.TempDir()
	rng := rand.New(rand.NewPCG(1, 2))
	text := func(n int) string {
		p := make([]byte, n)
		for i := range p {
			p[i] = byte(rng.Uint32())
		}
		return hex.EncodeToString(p)
	}
	for name, kind := range map[string]struct {
		n    int
		line func(i int) string
	}{
		"size.mdb": {100000, func(i int) string { return fmt.Sprintf("%d:%s:Size.Section-%d", 512*(1+rng.IntN(4000)), text(16), i) }},
		"size.hsb": {80000, func(i int) string { return fmt.Sprintf("%s:%d:Size.File-%d:73", text(32), 1+rng.IntN(4<<20), i) }},
		"size.ndb": {70000, func(i int) string {
			return fmt.Sprintf("Size.Body-%d:%d:*:%s*%s", i, rng.IntN(2), text(8+rng.IntN(24)), text(8+rng.IntN(24)))
		}},
		"size.ldb": {18704, func(i int) string {
			return fmt.Sprintf("Size.Logical-%d;Engine:51-255,Target:1;0&1;%s;%s", i, text(10+rng.IntN(20)), text(10+rng.IntN(20)))
		}},
	} {
		var out strings.Builder
		for i := range kind.n {
			out.WriteString(kind.line(i) + "\n")
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(out.String()), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	own, err := os.ReadFile(harness.Database(b))
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "own.ndb"), own, 0o644)
	}
	if err != nil {
		b.Fatal(err)
	}
	return dir
}

// daemonOf finds the process of a private clamd.
func daemonOf(b testing.TB, e *clam.Engine) int {
	b.Helper()
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		line, err := os.ReadFile(dir + "/cmdline")
		if err == nil && bytes.Contains(line, []byte(filepath.Dir(e.Info().Socket))) {
			pid, _ := strconv.Atoi(filepath.Base(dir))
			return pid
		}
	}
	b.Fatal("no process is the private clamd")
	return 0
}

// cpu is the processor time that this process and a clamd have used.
func cpu(b testing.TB, clamd int) time.Duration {
	b.Helper()
	var own unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &own); err != nil {
		b.Fatal(err)
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", clamd))
	if err != nil {
		b.Fatal(err)
	}
	f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(own.Utime.Nano()+own.Stime.Nano()) + time.Duration(user+system)*(time.Second/100)
}

// BenchmarkAgain sweeps running guests: one for the first time, the same again with
// nothing changed, and two more that were cloned from it. All figures are processor time
// of vmav and clamd together; again-x and clone-x are how many times cheaper than the
// first sweep the second one and that of a clone were.
func BenchmarkAgain(b *testing.B) {
	h, err := domain.Connect(harness.URI)
	if err != nil {
		b.Fatal(err)
	}
	defer h.Close()
	h.SetBackend(domain.QEMU, func(error) {})
	var guests []*source.Cache
	for range 3 {
		g := harness.Start(b, "10.0.19041")
		harness.Virsh(b, "suspend", g.Name)
		guests = append(guests, source.NewCache(openSource(b, h, g.Name), 4096))
	}
	for name, db := range map[string]string{"one-signature": harness.Database(b), "268704-signatures": signatures(b)} {
		b.Run(name, func(b *testing.B) {
			e, err := clam.Open(context.Background(), clam.Options{Databases: []string{db}, TempDir: os.TempDir()})
			if err != nil {
				b.Fatal(err)
			}
			defer e.Close()
			clamd := daemonOf(b, e)
			scanner := scan.InProcess{Means: scan.Means{Profiles: winstruct.BuiltIn(), Engine: e, Memory: scan.NewCache()}}
			run := func(s *source.Cache) (finding.Scan, time.Duration) {
				before := cpu(b, clamd)
				s.Invalidate()
				d, err := scantest.Scan(context.Background(), scanner, scan.Target{Name: "bench", Source: s},
					scan.Request{MinCoverage: scan.DefaultMinCoverage})
				if err != nil || len(d.Findings) == 0 {
					b.Fatalf("%+v, %v", d, err)
				}
				return d, cpu(b, clamd) - before
			}
			d, first := run(guests[0])
			_, one := run(guests[1])
			_, two := run(guests[2])
			b.ResetTimer()
			before := cpu(b, clamd)
			for range b.N {
				again, _ := run(guests[0])
				if again.Unchanged < again.Images-len(again.Findings) {
					b.Fatalf("%d of %d images recognised: %+v", again.Unchanged, again.Images, again)
				}
			}
			again := (cpu(b, clamd) - before) / time.Duration(b.N)
			clone := (one + two) / 2
			b.ReportMetric(float64(d.Bytes)/1e6, "MB")
			b.ReportMetric(1000*first.Seconds(), "first-ms")
			b.ReportMetric(1000*again.Seconds(), "again-ms")
			b.ReportMetric(1000*clone.Seconds(), "clone-ms")
			b.ReportMetric(float64(first)/float64(again), "again-x")
			b.ReportMetric(float64(first)/float64(clone), "clone-x")
		})
	}
}
