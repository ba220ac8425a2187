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
	Include  []string // patterns of names, with * and ?, in any case; none for all domains
	Exclude  []string
	Profiles winstruct.Finder
	Engine   clam.Options
	Policy   verdict.Policy
	Kill     kill.Options // for kills and holds

	Request  scan.Request     // how each guest is scanned; the service sets what is scanned
	Results  *scan.Cache      // results of earlier scans; nil for a cache of this run
	Scanners Scanners         // make the scanners; nil to scan in this process
	Accounts respond.Accounts // record the scans; nil to record nothing

	Poll     time.Duration // between two looks at a guest's process list; 0 for DefaultPoll
	Interval time.Duration // between two sweeps of a domain; 0 for DefaultInterval
	Jitter   time.Duration // maximum of a random time that is added to Interval

	Domains int     // sweeps that run at once; 0 for one per two processors
	CPU     float64 // percent of one processor; sweeps wait while the service uses more; 0 for no bound
	Memory  int64   // bytes that the service tries to stay below; 0 for no bound
	Slots   int     // scans that clamd has at once; 0 for DefaultSlots

	Runtime string // directory of locks and of the socket
	Log     *slog.Logger
}

// Scanners makes the scanners of a Service. Its methods are called concurrently.
type Scanners interface {
	// Scanner returns a scanner for sweeps.
	Scanner(m scan.Means) scan.Scanner
	// Keep returns a scanner for frequent scans of what is new in one guest.
	Keep(m scan.Means) scan.Kept
	// Used returns the processor time of other processes that compute for the scanners and
	// have not ended.
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

// wanted reports whether a domain is to be watched.
func (o *Options) wanted(name string) bool {
	name = strings.ReplaceAll(strings.ToLower(name), "/", "_") // so that a pattern's * matches it too
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

// nobody records nothing. It implements respond.Accounts and respond.Account.
type nobody struct{}

func (nobody) Account(string, string, bool) respond.Account                    { return nobody{} }
func (nobody) Found(context.Context, *finding.Finding, scan.Content) error     { return nil }
func (nobody) Acting(context.Context, verdict.Action, []finding.Finding) error { return nil }
func (nobody) End(context.Context, *finding.Scan)                              {}
func (nobody) Acted(context.Context, verdict.Action, []finding.Finding, *finding.Kill, *finding.Act) error {
	return nil
}
