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
	"vmav.dev/vmav/internal/kill"
	"vmav.dev/vmav/internal/respond"
	"vmav.dev/vmav/internal/scan"
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
	Policy   verdict.Policy
	Kill     kill.Options // for kills and holds

	Request  scan.Request     // how each guest is scanned; which part of it is for the service to say
	Results  *scan.Cache      // of results; nil for one of this run
	Scanners Scanners         // do the scans; nil for this process itself
	Accounts respond.Accounts // record the scans; nil for nobody

	Poll     time.Duration // between two looks at a guest's process list; 0 for DefaultPoll
	Interval time.Duration // between two sweeps of everything in a domain; 0 for DefaultInterval
	Jitter   time.Duration // up to this is added to Interval

	Domains int     // sweeps of everything that run at once; 0 for one for two processors
	CPU     float64 // percent of one processor that sweeps of everything keep the service below; 0 for no bound
	Memory  int64   // bytes that the service aims to stay below; 0 for no bound
	Slots   int     // scans that clamd has at once; 0 for DefaultSlots

	Runtime string // directory of locks and of the socket
	Log     *slog.Logger
}

// Scanners makes the scanners of a Service. Its methods are called concurrently.
type Scanners interface {
	// Scanner makes one for scans of everything in a guest.
	Scanner(m scan.Means) scan.Scanner
	// Keep makes one for scans of what is new in one guest, again and again.
	Keep(m scan.Means) scan.Kept
	// Used is the processor time of what computes for the scanners in other processes and has
	// not ended.
	Used() time.Duration
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
		o.Results = scan.NewCache()
	}
	if o.Scanners == nil {
		o.Scanners = inProcess{}
	}
	if o.Accounts == nil {
		o.Accounts = nobody{}
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

// inProcess scans in this process.
type inProcess struct{}

func (inProcess) Scanner(m scan.Means) scan.Scanner { return scan.InProcess{Means: m} }
func (inProcess) Keep(m scan.Means) scan.Kept       { return scan.InProcess{Means: m} }
func (inProcess) Used() time.Duration               { return 0 }

// nobody records nothing.
type nobody struct{}

func (nobody) Account(string, string, bool) respond.Account                    { return nobody{} }
func (nobody) Found(context.Context, *finding.Finding, scan.Content) error     { return nil }
func (nobody) Acting(context.Context, verdict.Action, []finding.Finding) error { return nil }
func (nobody) End(context.Context, *finding.Scan)                              {}
func (nobody) Acted(context.Context, verdict.Action, []finding.Finding, *finding.Kill, *finding.Act) error {
	return nil
}
