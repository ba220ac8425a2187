package domain

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"libvirt.org/go/libvirt"
)

// WatchOptions configure a Watcher.
type WatchOptions struct {
	URI      string        // as Connect takes it
	Backend  Backend       // "" for Auto
	Fallback func(error)   // called once for each connection with why the module is not used; may be nil
	Resync   time.Duration // interval between listings without an event; 0 for a minute
	Log      *slog.Logger
}

// Update reports something that happened, with the domain as it is now. Events are hints;
// the receiver acts on the domain's state.
type Update struct {
	Kind   EventKind
	Detail string // why, in libvirt's words; may be ""
	Domain Domain // of all kinds but EventListed and EventLost

	// Domains has all running domains, for EventListed. Any other domain known before has
	// stopped.
	Domains []Domain
	Err     error // of EventLost
}

// Watcher follows the domains of a libvirt daemon. When its connection breaks it connects
// again, and lists the domains to make up for events that it missed.
type Watcher struct {
	opt     WatchOptions
	updates chan Update
	host    atomic.Pointer[Host]
	stop    context.CancelFunc
	done    chan struct{}
}

// Bounds of a Watcher.
const (
	firstRetry = 200 * time.Millisecond
	lastRetry  = 15 * time.Second
	maxQueued  = 4096 // events; beyond, the domains are listed anew
)

// Watch starts a Watcher. The caller receives from Updates until it calls Close. If it does
// not receive, only later updates are delayed.
func Watch(ctx context.Context, opt WatchOptions) (*Watcher, error) {
	if opt.Resync <= 0 {
		opt.Resync = time.Minute
	}
	if opt.Backend == "" {
		opt.Backend = Auto
	}
	if err := startLoop(); err != nil {
		return nil, fmt.Errorf("start libvirt's event loop: %w", explain(err))
	}
	ctx, stop := context.WithCancel(ctx)
	w := &Watcher{opt: opt, updates: make(chan Update), stop: stop, done: make(chan struct{})}
	go w.run(ctx)
	return w, nil
}

// Updates returns the channel of updates. It is closed after Close, or when the context
// ends.
func (w *Watcher) Updates() <-chan Update { return w.updates }

// Host returns the present connection, or nil if there is none. It belongs to the Watcher,
// which closes it when it breaks. Sources that were opened through it stay open.
func (w *Watcher) Host() *Host { return w.host.Load() }

// Close ends the Watcher and its connection.
func (w *Watcher) Close() {
	w.stop()
	<-w.done
}

// There is one event loop for the whole process, and it never ends: libvirt requires that
// it is registered before the first connection that subscribes to events.
var startLoop = sync.OnceValue(func() error {
	if err := libvirt.EventRegisterDefaultImpl(); err != nil {
		return err
	}
	go func() {
		for {
			if err := libvirt.EventRunDefaultImpl(); err != nil {
				time.Sleep(100 * time.Millisecond) // it fails where poll(2) does
			}
		}
	}()
	return nil
})

func (w *Watcher) run(ctx context.Context) {
	defer close(w.done)
	defer close(w.updates)
	retry := firstRetry
	for {
		connected, err := w.follow(ctx)
		if ctx.Err() != nil {
			return
		}
		if connected {
			retry = firstRetry
			if !w.send(ctx, Update{Kind: EventLost, Err: err}) {
				return
			}
		}
		wait := retry/2 + rand.N(retry)
		w.opt.Log.Warn("no connection to libvirt", "error", err, "retry_in", wait.Round(time.Millisecond))
		retry = min(retry*2, lastRetry)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

func (w *Watcher) send(ctx context.Context, u Update) bool {
	select {
	case w.updates <- u:
		return true
	case <-ctx.Done():
		return false
	}
}

// errClosed reports a connection that libvirt says is closed.
var errClosed = errors.New("libvirt closed the connection")

// follow makes one connection and passes on its events until it breaks. connected reports
// whether the connection was made.
func (w *Watcher) follow(ctx context.Context) (connected bool, err error) {
	h, err := Connect(w.opt.URI)
	if err != nil {
		return false, err
	}
	defer h.Close()
	h.SetBackend(w.opt.Backend, w.opt.Fallback)
	q := newQueue()
	undo, err := q.subscribe(h.conn)
	defer undo()
	if err != nil {
		return false, fmt.Errorf("subscribe to events of %s: %w", h.uri, explain(err))
	}
	w.host.Store(h)
	defer w.host.CompareAndSwap(h, nil)
	w.opt.Log.Info("connected to libvirt", "uri", h.uri)
	// Events are subscribed to, so nothing falls between this list and them.
	relist := time.NewTimer(0)
	defer relist.Stop()
	for {
		select {
		case <-ctx.Done():
			return true, ctx.Err()
		case err := <-q.closed:
			return true, err
		case <-relist.C:
			doms, err := h.List(false)
			if err != nil {
				return connected, err
			}
			connected = true
			if !w.send(ctx, Update{Kind: EventListed, Domains: doms}) {
				return true, ctx.Err()
			}
			relist.Reset(w.opt.Resync)
		case <-q.ready:
			for _, e := range q.take() {
				if e.uuid == "" { // events were dropped
					relist.Reset(0)
					continue
				}
				d, err := h.FindUUID(e.uuid)
				if errors.Is(err, ErrNotFound) {
					d, err = Domain{ID: -1, Name: e.name, UUID: e.uuid, State: "gone"}, nil
				}
				if err != nil {
					return true, err
				}
				if !w.send(ctx, Update{Kind: e.kind, Detail: e.detail, Domain: d}) {
					return true, ctx.Err()
				}
			}
		}
	}
}
