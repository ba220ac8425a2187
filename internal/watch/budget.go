package watch

import (
	"context"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// budget is what all domains together may use: how many are swept at once, how many scans
// the engine has at once, and which share of a processor that takes. A scan of what is new
// in a guest waits only for a slot of the engine, of which one is reserved for such scans.
// Its cost is charged to the sweeps.
type budget struct {
	domains  chan struct{}
	bulk     chan struct{} // scans of the engine for sweeps
	slots    chan struct{} // scans of the engine
	share    float64       // processors; 0 for no bound
	scanners Scanners

	mu     sync.Mutex
	since  time.Time
	before time.Duration // used at since
	engine time.Duration // time that the engine's scans took, which clamd computed in
}

// slice is the time for which the share may be exceeded before sweeps wait, and after which
// unused time is forgotten.
const slice = time.Second

func newBudget(o *Options) *budget {
	domains := o.Domains
	if domains <= 0 {
		domains = max(1, runtime.NumCPU()/2)
	}
	if o.Memory > 0 {
		debug.SetMemoryLimit(o.Memory)
		domains = int(max(1, min(int64(domains), o.Memory/sweepMemory)))
	}
	b := &budget{domains: make(chan struct{}, domains), slots: make(chan struct{}, o.Slots),
		bulk: make(chan struct{}, max(1, o.Slots-1)), share: o.CPU / 100, scanners: o.Scanners, since: time.Now()}
	b.before = b.used()
	return b
}

// sweepMemory is what one sweep may need, in bytes: the buffers of its goroutines and the
// files that it keeps.
const sweepMemory = 512 << 20

// acquire takes one of a channel's places. release gives it back.
func acquire(ctx context.Context, places chan struct{}) error {
	select {
	case places <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func release(places chan struct{}) { <-places }

// used returns the processor time that this process and those that scan for it took. A
// process that ends at this moment may count twice; the next call corrects that. If it did
// not count at all, its time would seem to have been used later.
func (b *budget) used() time.Duration {
	sum := b.scanners.Used()
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if unix.Getrusage(who, &u) == nil {
			sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
	}
	return sum
}

// scanned charges the time that a scan of the engine took.
func (b *budget) scanned(d time.Duration) {
	b.mu.Lock()
	b.engine += d
	b.mu.Unlock()
}

// owed returns how long to wait until the use since the last slice is within the share.
func (b *budget) owed(now time.Time, use time.Duration) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	use += b.engine
	elapsed := now.Sub(b.since)
	spent := use - b.before
	allowed := time.Duration(float64(elapsed) * b.share)
	if spent < allowed && elapsed > slice {
		b.since, b.before = now, use // unused time is not saved up
		return 0
	}
	if over := spent - allowed; over > 0 {
		return time.Duration(float64(over) / b.share)
	}
	return 0
}

// pace holds a sweep back while the share is used up.
func (b *budget) pace(ctx context.Context) error {
	if b.share <= 0 {
		return ctx.Err()
	}
	for {
		wait := b.owed(time.Now(), b.used())
		if wait < time.Millisecond {
			return ctx.Err()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(min(wait, slice)):
		}
	}
}
