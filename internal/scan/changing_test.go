package scan

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/ntguest"
	"vmav.dev/vmav/internal/source"
)

// changing is a guest that changes its memory while it is read: once armed, every few
// reads come back with words that were not there the time before.
type changing struct {
	source.Source
	mu    sync.Mutex
	rng   *rand.Rand
	armed bool
}

func (c *changing) ReadPhys(p []byte, addr uint64) error {
	if err := c.Source.ReadPhys(p, addr); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.armed || c.rng.Uint64N(4) != 0 {
		return nil
	}
	for range 1 + c.rng.Uint64N(8) {
		at := int(c.rng.Uint64N(uint64(len(p))))
		switch c.rng.Uint64N(3) {
		case 0:
			p[at] = byte(c.rng.Uint64())
		case 1:
			clear(p[at:min(len(p), at+64)])
		default: // a pointer, a size or a count becomes another one
			copy(p[at:], p[c.rng.Uint64N(uint64(len(p))):])
		}
	}
	return nil
}

// TestAGuestThatChangesWhileItIsRead scans guests that change under every read, after
// the kernel is found: the scan ends, and nothing it could not read is called clean.
func TestAGuestThatChangesWhileItIsRead(t *testing.T) {
	problems := 0
	for seed := range uint64(6) {
		src, _ := guest(t, ntguest.Options{Build: "10.0.22000", Seed: seed, Trim: 20, FileCache: true, Implants: true})
		c := &changing{Source: src, rng: rand.New(rand.NewPCG(seed, 1)), armed: seed > 2}
		opt := options{Jobs: 1, MinCoverage: DefaultMinCoverage, Progress: func(p Progress) {
			c.mu.Lock() // the others change once images are read
			c.armed = true
			c.mu.Unlock()
		}}
		got, err := look(context.Background(), Target{Name: "win", Source: c}, builtIn(&refusing{}, NewCache()), opt)
		if err != nil {
			t.Fatal(err)
		}
		if got.Status == finding.StatusScanned && len(got.Errors) > 0 || got.Status == finding.StatusIncomplete && len(got.Errors) == 0 {
			t.Errorf("seed %d: status %s with %d errors", seed, got.Status, len(got.Errors))
		}
		if problems += len(got.Errors); len(got.Errors) > finding.MaxErrors || got.Images > 1<<16 {
			t.Errorf("seed %d: %d errors, %d images", seed, len(got.Errors), got.Images)
		}
	}
	if problems == 0 {
		t.Error("nothing changed")
	}
}
