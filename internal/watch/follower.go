package watch

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"vmav.dev/vmav/internal/domain"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/source"
)

// follower follows one domain from its start to its end.
type follower struct {
	svc        *Service
	name, uuid string
	log        *slog.Logger
	cancel     context.CancelFunc
	done       chan struct{}
	poke       chan struct{} // holds a token when the domain's state changed

	mu     sync.Mutex
	domain domain.Domain
	reset  bool // the guest was reset since the last call of wasReset
	status DomainStatus
	guest  *guestWatch // nil while its guest is not watched
}

func newFollower(s *Service, d domain.Domain) *follower {
	f := &follower{svc: s, name: d.Name, uuid: d.UUID, log: s.opt.Log.With("domain", d.Name), done: make(chan struct{}),
		poke: make(chan struct{}, 1), domain: d}
	f.status = DomainStatus{Name: d.Name, UUID: d.UUID, State: "opening"}
	return f
}

func (f *follower) start(ctx context.Context) {
	ctx, f.cancel = context.WithCancel(ctx)
	go f.run(ctx)
}

func (f *follower) stop() { f.cancel() }

// incarnation returns libvirt's id of the domain's present run.
func (f *follower) incarnation() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.domain.ID
}

// changed tells the follower the domain's state.
func (f *follower) changed(d domain.Domain, kind domain.EventKind) {
	f.mu.Lock()
	same := f.domain.State == d.State && kind != domain.EventReset
	f.domain = d
	f.reset = f.reset || kind == domain.EventReset
	f.mu.Unlock()
	if same {
		return
	}
	select {
	case f.poke <- struct{}{}:
	default:
	}
}

// current returns the domain as it was last reported.
func (f *follower) current() domain.Domain {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.domain
}

// Paused implements scan.Domain.
func (f *follower) Paused() bool { return f.current().Paused }

// Suspend implements respond.Suspender.
func (f *follower) Suspend(ctx context.Context) error {
	h, err := f.svc.host()
	if err != nil {
		return err
	}
	return h.Suspend(ctx, f.current())
}

// wasReset reports whether the guest was reset since the last call.
func (f *follower) wasReset() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.reset
	f.reset = false
	return r
}

func (f *follower) set(change func(*DomainStatus)) {
	f.mu.Lock()
	change(&f.status)
	f.mu.Unlock()
}

// Bounds of the time between two attempts to open a domain's memory.
const firstOpen, lastOpen = 100 * time.Millisecond, 30 * time.Second

// errAgain ends the watch of a guest that is to be opened again at once.
var errAgain = errors.New("to be opened anew")

func (f *follower) run(ctx context.Context) {
	defer close(f.done)
	said := ""
	for wait := firstOpen; ctx.Err() == nil; {
		begin := time.Now()
		err := f.open(ctx)
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errAgain) {
			f.log.Info("guest is opened anew", "reason", err)
			wait = firstOpen
		} else {
			if time.Since(begin) > lastOpen {
				wait, said = firstOpen, ""
			}
			if text := err.Error(); text != said {
				f.log.Warn("domain cannot be watched now", "error", err)
				said = text
			}
		}
		f.set(func(s *DomainStatus) { s.State, s.Reason = "waiting", err.Error() })
		if !f.sleep(ctx, wait) {
			return
		}
		wait = min(2*wait, lastOpen)
	}
}

// sleep waits for d, or until the domain's state changes. It returns false if ctx ended.
func (f *follower) sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-f.poke:
	case <-t.C:
	}
	return true
}

// open opens the domain's memory, waits for its kernel, and watches the guest until
// something breaks.
func (f *follower) open(ctx context.Context) error {
	h, err := f.svc.host()
	if err != nil {
		return err
	}
	src, err := h.Open(ctx, f.current())
	if err != nil {
		return err
	}
	defer src.Close()
	f.set(func(s *DomainStatus) { s.Source = src.Info().Kind })
	g, err := f.find(ctx, src)
	if err != nil {
		return err
	}
	k := g.Kernel()
	f.log.Info("kernel found", "build", k.Version, "source", src.Info().Kind, "located", k.Located, "inferred", k.Inferred)
	w, err := newGuestWatch(f, src, g)
	if err != nil {
		return err
	}
	return w.run(ctx)
}

// Times between two searches for a guest's kernel.
const (
	firstLook  = 50 * time.Millisecond
	lastLook   = 5 * time.Second  // while it boots
	otherLook  = 30 * time.Minute // while it is not Windows
	lookEffort = 20               // a search takes at most one part in this many of the time
)

// cachePages bounds a page cache for single reads: 16 MiB.
const cachePages = 4096

// find waits until the guest's kernel is up, and returns the guest.
func (f *follower) find(ctx context.Context, src source.Source) (*introspect.Guest, error) {
	wait, said := firstLook, ""
	cache := source.NewCache(src, cachePages)
	for {
		f.wasReset()
		cache.Invalidate()
		begin := time.Now()
		g, err := introspect.Open(ctx, cache, f.svc.opt.Profiles)
		took := time.Since(begin)
		if err == nil {
			return g.WithSource(src), nil
		}
		limit := lastLook
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, introspect.ErrBooting):
			f.set(func(s *DomainStatus) { s.State, s.Reason = "booting", err.Error() })
		case errors.Is(err, introspect.ErrNotWindows):
			// A boot loader looks like no system at all, but a Linux will not become a Windows.
			limit = otherLook
			f.set(func(s *DomainStatus) { s.State, s.Reason = "not Windows", err.Error() })
		default:
			return nil, err
		}
		if text := err.Error(); text != said {
			f.log.Info("no kernel yet", "reason", err)
			said = text
		}
		wait = max(wait, min(lookEffort*took, limit))
		if !f.sleep(ctx, wait) {
			return nil, ctx.Err()
		}
		if f.wasReset() {
			wait = firstLook
			continue
		}
		wait = min(wait*3/2, limit)
	}
}
