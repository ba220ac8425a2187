package worker

import (
	"context"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmav.dev/vmav/internal/clam"
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/ntguest"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/sweep"
	"vmav.dev/vmav/internal/winstruct"
)

// BenchmarkStart is the cost of a worker that does nothing.
func BenchmarkStart(b *testing.B) {
	src, _ := guestOf(b, ntguest.Options{Build: "10.0.19041", Seed: 3})
	r := &Runner{args: []string{"leave"}}
	for range b.N {
		r.Domain(context.Background(), sweep.Target{Name: "win", Source: src}, winstruct.BuiltIn(), finder{}, sweep.NewCache(), sweep.Options{})
	}
}

// silent is an engine that takes no time: what is left is what vmav itself costs.
type silent struct{}

func (silent) Scan(context.Context, string, []byte) (clam.Result, error) { return clam.Result{}, nil }

// BenchmarkSweep sweeps a guest in this process and in a worker, in turn, with an engine
// that takes no time and with ClamAV, where the worker maps guest memory and where it asks
// for it. The ratios are of whole sweeps, and of their stages.
func BenchmarkSweep(b *testing.B) {
	src, _ := guestOf(b, ntguest.Options{Build: "10.0.19041", Seed: 3})
	clamd := engineOf(b)
	for _, c := range []struct {
		name   string
		engine sweep.Scanner
		src    source.Source
	}{{"mapped/no-engine", silent{}, src}, {"mapped/clamd", clamd, src},
		{"asked/no-engine", silent{}, struct{ source.Source }{src}}, {"asked/clamd", clamd, struct{ source.Source }{src}}} {
		b.Run(c.name, func(b *testing.B) {
			var took, cpu [2]time.Duration
			var stages [2]finding.Timing
			for n := range 2 * b.N {
				do := sweep.Domain
				if n%2 == 1 {
					do = Domain
				}
				begin, used := time.Now(), processor(b)
				d, err := do(context.Background(), sweep.Target{Name: "win", Source: source.NewCache(c.src, cachePages)}, winstruct.BuiltIn(), c.engine, sweep.NewCache(), sweep.Options{MinCoverage: sweep.DefaultMinCoverage})
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
