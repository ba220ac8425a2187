package hook

import (
	"context"
	"io"
	"time"

	"vmav.dev/vmav/internal/watch"
)

// Bounds of one Run. libvirt waits for it, and the guest's start with libvirt.
const (
	handOver = 20 * time.Millisecond // to give the event to the service
	whole    = 2 * time.Second       // for all, whatever hangs
	maxXML   = 64 << 20              // bytes of the domain's XML
)

// Options say where a hook's event goes.
type Options struct {
	Runtime string // directory of the service's socket
	Spool   string // directory of events that no service took
	// Start starts a scan of what is in the spool, in a process of its own, and does not
	// wait for it.
	Start func() error
}

// Parse reads the arguments of a hook: NAME OPERATION SUB-OPERATION EXTRA. It fails where
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

// starts tells whether a hint says that a guest begins to run.
func starts(h watch.Hint) bool {
	return (h.Operation == "started" || h.Operation == "attach") && (h.Sub == "begin" || h.Sub == "" || h.Sub == "-")
}

// Run is the hook. It has no result, on purpose.
func Run(args []string, stdin io.Reader, opt Options) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() { _ = recover() }() // nothing here is worth a domain's start
		read := make(chan struct{})
		go func() {
			defer close(read)
			// A writer whose pipe nobody reads would wait, or be told of an error.
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

// deliver hands an event to the service or, where that does not take it, to a scan.
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
		return // full, or not to be written: libvirt's own events, or the next sweep, must do
	}
	if opt.Start != nil {
		_ = opt.Start()
	}
}
