package watch

import (
	"context"
	"fmt"
	"log/slog"
	"path"
	"slices"
	"strings"
	"time"

	"vmav.dev/vmav/internal/clam"
	"vmav.dev/vmav/internal/domain"
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/sweep"
	"vmav.dev/vmav/internal/verdict"
	"vmav.dev/vmav/internal/winstruct"
)

// Options say what a Service watches, how, and within which budget.
type Options struct {
	URI      string
	Backend  domain.Backend
	Include  []string // patterns of names with * and ?, case aside; none for all
	Exclude  []string
	Profiles winstruct.Finder
	Engine   clam.Options
	Sweep    sweep.Options // policy, kills, coverage, images in work at once
	Results  *sweep.Cache  // of results; nil for one of this run
	Sweeper  Sweeper       // does the sweeps; nil for this process itself

	Poll     time.Duration // between two looks at a guest's process list; 0 for DefaultPoll
	Interval time.Duration // between two sweeps of everything in a domain; 0 for DefaultInterval
	Jitter   time.Duration // up to this is added to Interval

	Domains int     // sweeps of everything that run at once; 0 for one for two processors
	CPU     float64 // percent of one processor that sweeps of everything keep the service below; 0 for no bound
	Memory  int64   // bytes that the service aims to stay below; 0 for no bound
	Slots   int     // scans that clamd has at once; 0 for DefaultSlots

	Runtime string // directory of locks and of the socket
	Record  Recorder
	Log     *slog.Logger
}

// Sweeper does the sweeps of a Service. Its methods are called concurrently.
type Sweeper interface {
	// Keep makes what sweeps one guest, again and again.
	Keep() GuestSweeper
	// Used is the processor time of what computes for it in other processes and has not
	// ended.
	Used() time.Duration
}

// GuestSweeper sweeps one guest, several times at once.
type GuestSweeper interface {
	// Domain has the shape of sweep.Domain.
	Domain(context.Context, sweep.Target, winstruct.Finder, sweep.Scanner, sweep.Memory, sweep.Options) (finding.Scan, error)
	// Close ends what is kept for the guest. No sweep is under way, and none comes.
	Close()
}

// Recorder makes the record of a sweep of a domain that begins: of everything, or of what is
// new.
type Recorder func(domain, uuid string, everything bool) Record

// Record records one sweep. As a Sink it is told of a finding before anything is done about
// it, and not of one that was recorded before and needs no action. End is told of the result,
// with the findings in it that were not told of before.
type Record interface {
	sweep.Sink
	End(ctx context.Context, d *finding.Scan, fresh []finding.Finding)
}

// Defaults of Options.
const (
	DefaultPoll     = 5 * time.Millisecond
	DefaultInterval = 6 * time.Hour
	DefaultSlots    = 4
)

func (o *Options) complete() error {
	for _, p := range slices.Concat(o.Include, o.Exclude) {
		if _, err := path.Match(p, ""); err != nil {
			return fmt.Errorf("pattern of domains %q: %w", p, err)
		}
	}
	if o.Poll <= 0 {
		o.Poll = DefaultPoll
	}
	if o.Interval <= 0 {
		o.Interval = DefaultInterval
	}
	if o.Slots <= 0 {
		o.Slots = DefaultSlots
	}
	if o.Results == nil {
		o.Results = sweep.NewCache()
	}
	if o.Sweeper == nil {
		o.Sweeper = inProcess{}
	}
	if o.Record == nil {
		o.Record = func(string, string, bool) Record { return nobody{} }
	}
	return nil
}

// wanted tells whether a domain is to be watched.
func (o *Options) wanted(name string) bool {
	name = strings.ReplaceAll(strings.ToLower(name), "/", "_") // a pattern's * is to match them, too
	matches := func(patterns []string) bool {
		return slices.ContainsFunc(patterns, func(p string) bool { ok, _ := path.Match(strings.ToLower(p), name); return ok })
	}
	return (len(o.Include) == 0 || matches(o.Include)) && !matches(o.Exclude)
}

// inProcess sweeps in this process.
type inProcess struct{}

func (inProcess) Keep() GuestSweeper  { return inProcess{} }
func (inProcess) Used() time.Duration { return 0 }
func (inProcess) Close()              {}
func (inProcess) Domain(ctx context.Context, t sweep.Target, profiles winstruct.Finder, engine sweep.Scanner, memory sweep.Memory, opt sweep.Options) (finding.Scan, error) {
	return sweep.Domain(ctx, t, profiles, engine, memory, opt)
}

// nobody records nothing.
type nobody struct{}

func (nobody) Found(context.Context, *finding.Finding, sweep.Exhibit) error    { return nil }
func (nobody) Acting(context.Context, verdict.Action, []finding.Finding) error { return nil }
func (nobody) End(context.Context, *finding.Scan, []finding.Finding)           {}
func (nobody) Acted(context.Context, verdict.Action, []finding.Finding, *finding.Kill, *finding.Act) error {
	return nil
}
