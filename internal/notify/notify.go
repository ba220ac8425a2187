package notify

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/journal"

	"vmav.dev/vmav/internal/config"
	"vmav.dev/vmav/internal/finding"
)

// Options describe who tells.
type Options struct {
	Trigger string // what started the run: "cli", "hook", "watch" or "timer"
	// Default says that the configuration is the default one. Then it is no error if
	// there is no journal.
	Default bool
	// Failed is called at once when something could not be delivered, unless it is nil.
	// It is called from several goroutines. Close sums up what failed.
	Failed func(error)
}

// Notifier tells every receiver that a configuration names. It is safe for concurrent
// use.
type Notifier struct {
	opt     Options
	host    string
	outlets []*outlet
	metrics *metrics // nil for none
}

// Open prepares to tell every receiver that c names. A receiver that does not answer now
// is no error, as it may answer when there is something to tell. A receiver that can
// never work is an error. The caller closes the Notifier.
func Open(c config.Report, opt Options) (*Notifier, error) {
	n := &Notifier{opt: opt}
	n.host, _ = os.Hostname() // "" if the kernel does not say
	var sinks []sink
	if c.Journal {
		if !opt.Default || journal.Enabled() {
			sinks = append(sinks, journald{})
		}
	}
	if c.Syslog {
		sinks = append(sinks, &syslogd{})
	}
	if len(c.Notify) > 0 {
		sinks = append(sinks, &command{argv: c.Notify, timeout: commandTimeout})
	}
	if c.Webhook.URL != "" {
		w, err := openWebhook(c.Webhook)
		if err != nil {
			return nil, err
		}
		sinks = append(sinks, w)
	}
	if c.Metrics != "" {
		m, err := openMetrics(c.Metrics)
		if err != nil {
			return nil, err
		}
		n.metrics = m
	}
	for _, s := range sinks {
		n.outlets = append(n.outlets, newOutlet(s, opt.Failed))
	}
	return n, nil
}

// Domain tells each finding of a domain's sweep, and how the sweep ended. dryRun says
// that nothing was done about the findings. Domain does not wait for any receiver.
func (n *Notifier) Domain(d *finding.Scan, dryRun bool) {
	for i := range d.Findings {
		n.Finding(d.Name, d.UUID, &d.Findings[i], dryRun)
	}
	e := n.event(TypeSweep, d.Name, d.UUID)
	e.DryRun = dryRun
	e.Sweep = &Sweep{Status: d.Status, Reason: d.Reason, Processes: d.Processes, Images: d.Images, Findings: len(d.Findings), Errors: len(d.Errors),
		Seconds: d.Timing.Total}
	n.tell(e, false)
	n.count(d, true)
}

// Fresh tells and counts what a scan of a domain's new processes or images found and
// did. Such a scan is no sweep of the domain, so nothing is told of its end.
func (n *Notifier) Fresh(d *finding.Scan, dryRun bool) {
	for i := range d.Findings {
		n.Finding(d.Name, d.UUID, &d.Findings[i], dryRun)
	}
	n.count(d, false)
}

// Finding tells one finding, whose outcome is known. It keeps a copy of it.
func (n *Notifier) Finding(domain, uuid string, f *finding.Finding, dryRun bool) {
	e := n.event(TypeFinding, domain, uuid)
	own := *f
	e.Finding, e.DryRun = &own, dryRun
	n.tell(e, f.Verdict.Notify)
}

// count adds a sweep of everything, or a scan of what is new, to the metrics, if there
// are any.
func (n *Notifier) count(d *finding.Scan, everything bool) {
	if n.metrics == nil {
		return
	}
	if err := n.metrics.add(d, everything, time.Now()); err != nil && n.opt.Failed != nil {
		n.opt.Failed(fmt.Errorf("metrics: %w", err))
	}
}

func (n *Notifier) event(typ, domain, uuid string) *Event {
	return &Event{ID: newID(), Type: typ, Time: time.Now().UTC(), Host: n.host, Trigger: n.opt.Trigger, Domain: domain, UUID: uuid}
}

// tell puts an event into the queues of the logs, and into the others if the policy
// notifies.
func (n *Notifier) tell(e *Event, notify bool) {
	for _, o := range n.outlets {
		if o.sink.log() || notify {
			o.put(e)
		}
	}
}

// Close waits until everything is delivered or ctx ends. The error says what was not
// delivered.
func (n *Notifier) Close(ctx context.Context) error {
	var errs []error
	for _, o := range n.outlets {
		o.stop()
	}
	for _, o := range n.outlets {
		errs = append(errs, o.wait(ctx))
	}
	return errors.Join(errs...)
}

// sink is one receiver. Events are delivered to it one after the other.
type sink interface {
	name() string
	log() bool // it gets every event, not only those that the policy notifies of
	send(ctx context.Context, e *Event) error
	close() error
}

// queueLength bounds the events that wait for one receiver.
const queueLength = 1024

// outlet is a sink with its queue.
type outlet struct {
	sink   sink
	failed func(error)
	queue  chan *Event
	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	closed  bool
	waiting int // in the queue, or being delivered
	lost    int
	first   error // why the first event was lost
}

var errFull = errors.New("more events than are kept waiting")

func newOutlet(s sink, failed func(error)) *outlet {
	ctx, cancel := context.WithCancel(context.Background())
	o := &outlet{sink: s, failed: failed, queue: make(chan *Event, queueLength), cancel: cancel, done: make(chan struct{})}
	go o.run(ctx)
	return o
}

func (o *outlet) run(ctx context.Context) {
	defer close(o.done)
	for e := range o.queue {
		err := ctx.Err()
		if err == nil {
			err = o.sink.send(ctx, e)
		}
		o.mu.Lock()
		o.waiting--
		o.mu.Unlock()
		if err != nil {
			o.lose(err)
		}
	}
}

func (o *outlet) put(e *Event) {
	o.mu.Lock()
	full := o.closed
	if !full {
		select {
		case o.queue <- e:
			o.waiting++
		default:
			full = true
		}
	}
	o.mu.Unlock()
	if full {
		o.lose(errFull)
	}
}

func (o *outlet) lose(why error) {
	o.mu.Lock()
	o.lost++
	if o.first == nil {
		o.first = why
	}
	o.mu.Unlock()
	if o.failed != nil {
		o.failed(fmt.Errorf("%s: %w", o.sink.name(), why))
	}
}

// stop makes the outlet take no more events.
func (o *outlet) stop() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.closed {
		o.closed = true
		close(o.queue)
	}
}

// linger is how long a sink may take to notice that its context has ended.
const linger = 2 * time.Second

// wait waits until the queue is empty. Then it closes the sink, unless the sink does not
// come back.
func (o *outlet) wait(ctx context.Context) (err error) {
	defer o.cancel()
	select {
	case <-o.done:
		err = o.sink.close()
	case <-ctx.Done():
		o.cancel()
		select {
		case <-o.done:
			err = o.sink.close()
		case <-time.After(linger):
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.lost == 0 && o.waiting == 0 {
		return err
	}
	if o.first == nil {
		o.first = ctx.Err()
	}
	return fmt.Errorf("%s: %d events were not delivered: %w", o.sink.name(), o.lost+o.waiting, o.first)
}
