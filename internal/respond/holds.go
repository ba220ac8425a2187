package respond

import (
	"context"
	"io"
	"sync"
	"time"

	"vmav.dev/vmav/internal/kill"
)

// Keeper keeps processes held until they end, or until all are released. It implements
// Holder; the zero Keeper is ready to use, by several scans at once.
type Keeper struct {
	mu   sync.Mutex
	held map[*kill.Held]bool
}

// Keep implements Holder.
func (k *Keeper) Keep(h *kill.Held) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.held == nil {
		k.held = make(map[*kill.Held]bool)
	}
	for other := range k.held {
		select {
		case <-other.Done():
			delete(k.held, other)
		default:
		}
	}
	k.held[h] = true
}

// Release lets go of all. It warns of what was held no more.
func (k *Keeper) Release(w Warner) {
	k.mu.Lock()
	all := k.held
	k.held = nil
	k.mu.Unlock()
	for h := range all {
		if err := h.Release(); err != nil {
			w.Warn("held no more: %v", err)
		}
	}
}

// Holds are the processes that a program holds for some time before it ends. It implements
// Holder, for one scan after the other. A nil one holds nothing.
type Holds struct {
	time    time.Duration
	all     []*kill.Held
	sources []io.Closer // of the domains whose processes are in all
	scanned int         // how many of all there were when the last scan ended
}

// NewHolds returns holds that last for a time at most.
func NewHolds(d time.Duration) *Holds { return &Holds{time: d} }

// Keep implements Holder.
func (h *Holds) Keep(p *kill.Held) { h.all = append(h.all, p) }

// Done closes a domain's source when its scan is over: now, or after the holds that the
// scan took, which look after their processes through it.
func (h *Holds) Done(src io.Closer) {
	if h == nil || len(h.all) == h.scanned {
		src.Close()
		return
	}
	h.scanned = len(h.all)
	h.sources = append(h.sources, src)
}

// Wait keeps the holds for their time or until ctx ends, lets go of all, and closes their
// sources. It warns of what it waits for and of what was held no more.
func (h *Holds) Wait(ctx context.Context, w Warner) {
	if h == nil || len(h.all) == 0 {
		return
	}
	w.Warn("%d processes are held for %v, or until vmav is interrupted", len(h.all), h.time)
	limit := time.NewTimer(h.time)
	defer limit.Stop()
	over := false
	for _, p := range h.all {
		if over {
			break
		}
		select { // each until it ends by itself
		case <-p.Done():
		case <-limit.C:
			over = true
		case <-ctx.Done():
			over = true
		}
	}
	for _, p := range h.all {
		if err := p.Release(); err != nil {
			w.Warn("held no more: %v", err)
		}
	}
	for _, src := range h.sources {
		src.Close()
	}
}
