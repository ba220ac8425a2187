package broker

import (
	"context"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/ntguest"
	"vmav.dev/vmav/internal/scan"
	"vmav.dev/vmav/internal/scan/scantest"
	"vmav.dev/vmav/internal/source"
)

// BenchmarkScan scans a guest in this process and in a worker, in turn, with an engine
// that takes no time and with ClamAV, where the worker maps guest memory and where it asks
// for it. The ratios are of whole scans, and of their stages.
func BenchmarkScan(b *testing.B) {
	src, _ := scantest.Guest(b, ntguest.Options{Build: "10.0.19041", Seed: 3})
	clamd := scantest.Engine(b)
	for _, c := range []struct {
		name   string
		engine scan.Engine
		src    source.Source
	}{{"mapped/no-engine", scantest.Silent{}, src}, {"mapped/clamd", clamd, src},
		{"asked/no-engine", scantest.Silent{}, struct{ source.Source }{src}}, {"asked/clamd", clamd, struct{ source.Source }{src}}} {
		b.Run(c.name, func(b *testing.B) {
			var took, cpu [2]time.Duration
			var stages [2]finding.Timing
			for n := range 2 * b.N {
				m := scantest.Means(c.engine)
				by := scan.Scanner(scan.InProcess{Means: m})
				if n%2 == 1 {
					by = new(Runner).Scanner(m)
				}
				begin, used := time.Now(), processor(b)
				d, err := scantest.Scan(context.Background(), by, scan.Target{Name: "win", Source: source.NewCache(c.src, 4096)},
					scan.Request{MinCoverage: scan.DefaultMinCoverage})
				took[n%2] += time.Since(begin)
				cpu[n%2] += processor(b) - used
				if err != nil || d.Status != finding.StatusScanned {
					b.Fatalf("%+v, %v", d, err)
				}
				s := &stages[n%2]
				s.Locate += d.Timing.Locate
				s.Enumerate += d.Timing.Enumerate
				s.Rebuild += d.Timing.Rebuild
				s.Scan += d.Timing.Scan
			}
			ms := func(seconds float64) float64 { return 1000 * seconds / float64(b.N) }
			for i, where := range []string{"here", "worker"} {
				b.ReportMetric(ms(took[i].Seconds()), where+"-ms")
				b.ReportMetric(ms(stages[i].Locate), where+"-locate-ms")
				b.ReportMetric(ms(stages[i].Enumerate), where+"-enumerate-ms")
				b.ReportMetric(ms(stages[i].Rebuild), where+"-rebuild-ms")
				b.ReportMetric(ms(stages[i].Scan), where+"-scan-ms")
			}
			b.ReportMetric(took[1].Seconds()/took[0].Seconds(), "ratio")
			b.ReportMetric(cpu[1].Seconds()/cpu[0].Seconds(), "cpu-ratio")
		})
	}
}

// processor is the time that this process and its workers have used, not clamd's.
func processor(b *testing.B) (sum time.Duration) {
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if err := unix.Getrusage(who, &u); err != nil {
			b.Fatal(err)
		}
		sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	return sum
}
