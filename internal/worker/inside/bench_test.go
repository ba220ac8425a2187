package inside

import (
	"context"
	"testing"

	"vmav.dev/vmav/internal/ntguest"
	"vmav.dev/vmav/internal/scan"
	"vmav.dev/vmav/internal/scan/scantest"
	"vmav.dev/vmav/internal/worker/broker"
)

// BenchmarkStart is the cost of a worker that does nothing.
func BenchmarkStart(b *testing.B) {
	src, _ := scantest.Guest(b, ntguest.Options{Build: "10.0.19041", Seed: 3})
	s := (&broker.Runner{Args: []string{"leave"}}).Scanner(scantest.Means(scantest.Finder{}))
	for range b.N {
		_, _ = scantest.Scan(context.Background(), s, scan.Target{Name: "win", Source: src}, scan.Request{})
	}
}
