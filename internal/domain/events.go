package domain

import (
	"errors"
	"fmt"
	"sync"

	"libvirt.org/go/libvirt"
)

// EventKind is what happened to a domain.
type EventKind string

// Kinds of updates. The first two concern the connection and not a domain.
const (
	EventListed  EventKind = "listed"  // all domains that run, after connecting and now and then
	EventLost    EventKind = "lost"    // the connection broke
	EventStarted EventKind = "started" // booted, restored, migrated to here, …
	EventStopped EventKind = "stopped" // shut down, destroyed, crashed, saved, migrated away, …
	EventPaused  EventKind = "paused"
	EventResumed EventKind = "resumed"
	EventReset   EventKind = "reset"   // the guest restarts, its QEMU stays
	EventCrashed EventKind = "crashed" // the guest's own crash, its QEMU may stay
	EventOther   EventKind = "other"   // defined, shutting down, …
)

// lifecycle translates libvirt's lifecycle event and its detail
// (virDomainEventType and its detail types).
func lifecycle(e *libvirt.DomainEventLifecycle) (EventKind, string) {
	detail := func(names ...string) string {
		if e.Detail >= 0 && e.Detail < len(names) {
			return names[e.Detail]
		}
		return fmt.Sprintf("detail %d", e.Detail)
	}
	switch e.Event {
	case libvirt.DOMAIN_EVENT_STARTED:
		return EventStarted, detail("booted", "migrated", "restored", "from snapshot", "wake-up", "recreated")
	case libvirt.DOMAIN_EVENT_STOPPED:
		return EventStopped, detail("shut down", "destroyed", "crashed", "migrated", "saved", "failed", "from snapshot", "recreated")
	case libvirt.DOMAIN_EVENT_SUSPENDED:
		return EventPaused, detail("by request", "migrated", "I/O error", "watchdog", "restored", "from snapshot", "API error", "post-copy", "post-copy failed",
			"guest shutdown")
	case libvirt.DOMAIN_EVENT_PMSUSPENDED:
		return EventPaused, detail("guest sleeps", "guest sleeps on disk")
	case libvirt.DOMAIN_EVENT_RESUMED:
		return EventResumed, detail("by request", "migrated", "from snapshot", "post-copy", "post-copy failed")
	case libvirt.DOMAIN_EVENT_CRASHED:
		return EventCrashed, detail("panicked", "crash loaded")
	case libvirt.DOMAIN_EVENT_SHUTDOWN:
		return EventOther, "shutting down"
	}
	return EventOther, ""
}

// event is what a callback keeps of its arguments; the handle that it gets belongs to
// libvirt. An event without a UUID says that the queue overflowed.
type event struct {
	uuid, name string
	kind       EventKind
	detail     string
}

// queue holds events until follow takes them. Callbacks run on libvirt's event loop, which
// serves every connection, and must not block.
type queue struct {
	mu     sync.Mutex
	events []event
	ready  chan struct{} // has an element if there are events
	closed chan error    // has the reason once the connection has broken
}

func newQueue() *queue {
	return &queue{ready: make(chan struct{}, 1), closed: make(chan error, 1)}
}

func (q *queue) put(d *libvirt.Domain, kind EventKind, detail string) {
	e := event{kind: kind, detail: detail}
	var err error
	if e.uuid, err = d.GetUUIDString(); err != nil {
		e.uuid = "" // the domain will be in the list
	}
	e.name, _ = d.GetName()
	q.mu.Lock()
	if len(q.events) >= maxQueued {
		q.events, e = q.events[:0], event{}
	}
	q.events = append(q.events, e)
	q.mu.Unlock()
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

func (q *queue) take() []event {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := q.events
	q.events = nil
	return out
}

// A libvirtd that is silent for keepAlive seconds times keepAlives counts as dead.
const keepAlive, keepAlives = 5, 4

// subscribe registers the queue for a connection's events. undo ends the subscription; it
// is never nil.
func (q *queue) subscribe(c *libvirt.Connect) (undo func(), err error) {
	var undos []func()
	undo = func() {
		for _, f := range undos {
			f()
		}
	}
	err = c.RegisterCloseCallback(func(_ *libvirt.Connect, reason libvirt.ConnectCloseReason) {
		err := errClosed
		switch reason {
		case libvirt.CONNECT_CLOSE_REASON_KEEPALIVE:
			err = errors.New("libvirt does not answer any more")
		case libvirt.CONNECT_CLOSE_REASON_EOF:
			err = errors.New("libvirt went away")
		}
		select {
		case q.closed <- err:
		default:
		}
	})
	if err != nil {
		return undo, err
	}
	undos = append(undos, func() { _ = c.UnregisterCloseCallback() })
	// Some drivers have no keep-alive, and a local one needs none.
	_ = c.SetKeepAlive(keepAlive, keepAlives)
	id, err := c.DomainEventLifecycleRegister(nil, func(_ *libvirt.Connect, d *libvirt.Domain, e *libvirt.DomainEventLifecycle) {
		kind, detail := lifecycle(e)
		q.put(d, kind, detail)
	})
	if err != nil {
		return undo, err
	}
	undos = append(undos, func() { _ = c.DomainEventDeregister(id) })
	id2, err := c.DomainEventRebootRegister(nil, func(_ *libvirt.Connect, d *libvirt.Domain) { q.put(d, EventReset, "") })
	if err != nil {
		return undo, err
	}
	undos = append(undos, func() { _ = c.DomainEventDeregister(id2) })
	return undo, nil
}
