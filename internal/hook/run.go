package hook

import (
	"context"
	"io"
	"time"

	"vmav.dev/vmav/internal/watch"
)

// Bounds of one Run. libvirt waits for it, and the guest's start with libvirt.
const (
	handOver = 20 * time.Millisecond // to hand the event to the service
	whole    = 2 * time.Second       // for everything, whatever hangs
	maxXML   = 64 << 20              // bytes of the domain's XML
)

// Options say where a hook's event goes.
type Options struct {
	Runtime string // directory of the service's socket
	Spool   string // directory of events that no service took
	// Start starts a scan for the events in the spool, in a process of its own, and
	// does not wait for it.
	Start func() error
}

// Parse reads the arguments of a hook: NAME OPERATION SUB-OPERATION EXTRA. It fails if
// libvirt cannot have given them.
func Parse(args []string) (watch.Hint, error) {
	var h watch.Hint
	for i, to := range []*string{&h.Domain, &h.Operation, &h.Sub} {
		if i < len(args) {
			*to = args[i]
		}
	}
	if err := h.Check(); err != nil {
		return watch.Hint{}, err
	}
	return h, nil
}

// starts tells whether a hint is about a guest that begins to run.
func starts(h watch.Hint) bool {
	return (h.Operation == "started" || h.Operation == "attach") && (h.Sub == "begin" || h.Sub == "" || h.Sub == "-")
}

// Run is the hook. It has no result, because a hook must not fail.
func Run(args []string, stdin io.Reader, opt Options) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() { _ = recover() }() // a fault here must not keep a domain from starting
		read := make(chan struct{})
		go func() {
			defer close(read)
			// libvirt writes the XML to a pipe: if nobody reads it, libvirt waits or
			// gets an error.
			_, _ = io.Copy(io.Discard, io.LimitReader(stdin, maxXML))
		}()
		if h, err := Parse(args); err == nil && starts(h) {
			deliver(h, opt)
		}
		<-read
	}()
	select {
	case <-done:
	case <-time.After(whole):
	}
}

// deliver hands an event to the service. If the service does not take it, a scan does.
func deliver(h watch.Hint, opt Options) {
	ctx, cancel := context.WithTimeout(context.Background(), handOver)
	defer cancel()
	if c, err := watch.Dial(ctx, opt.Runtime); err == nil {
		err = c.Tell(ctx, h)
		c.Close()
		if err == nil {
			return
		}
	}
	if err := Put(opt.Spool, h); err != nil {
		return // the spool is full or cannot be written: libvirt's own events, or the next sweep, make up for it
	}
	if opt.Start != nil {
		_ = opt.Start()
	}
}
