package respond

import (
	"context"
	"io"
	"sync"
	"time"

	"vmav.dev/vmav/internal/kill"
)

// Keeper keeps processes held until they end, or until it releases all of them. It
// implements Holder. The zero Keeper is ready to use, also by several scans at once.
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

// Release releases all processes. It warns of each process that was no longer held.
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
// Holder, for one scan after the other. A nil Holds holds nothing.
type Holds struct {
	time    time.Duration
	all     []*kill.Held
	sources []io.Closer // of the domains whose processes are in all
	scanned int         // length of all when the last scan ended
}

// NewHolds returns holds that last at most for d.
func NewHolds(d time.Duration) *Holds { return &Holds{time: d} }

// Keep implements Holder.
func (h *Holds) Keep(p *kill.Held) { h.all = append(h.all, p) }

// Done takes over a domain's source when its scan is over. It closes the source at once if
// the scan held nothing. Otherwise Wait closes it, because the held processes are looked
// after through it.
func (h *Holds) Done(src io.Closer) {
	if h == nil || len(h.all) == h.scanned {
		src.Close()
		return
	}
	h.scanned = len(h.all)
	h.sources = append(h.sources, src)
}

// Wait keeps the holds for their time or until ctx ends. It then releases all of them and
// closes their sources. It warns that it waits, and of each process that was no longer
// held.
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
