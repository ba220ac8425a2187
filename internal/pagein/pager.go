package pagein

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/source"
)

// ErrNoModule reports a guest whose source can only read, so that nothing can be requested
// of it.
var ErrNoModule = errors.New("paging in takes the kvm-memhook module, and the guest is not read through it")

// ErrInferred reports a guest that is read with the offsets of another build.
var ErrInferred = errors.New("paging in takes a profile of the guest's build, and it was inferred")

// Defaults of Options: pages, and pages of one process.
const (
	DefaultPages        = 16384 // 64 MiB
	DefaultProcessPages = 4096  // 16 MiB
	DefaultWait         = 500 * time.Millisecond
	DefaultTime         = 30 * time.Second
)

const (
	// batch is the number of pages that are requested at once. A session has room for more.
	batch = source.MaxActions / 2
	// slice is the time after which a process and its range are read again.
	slice = 500 * time.Millisecond
	// slack is how late an outcome may come. After that the module is taken to have lost
	// the action.
	slack = 5 * time.Second
	// maxTargets bounds the processes that one call of Fetch waits for.
	maxTargets = 4
)

// Options limit what is requested of one guest. A zero stands for the default.
type Options struct {
	Pages        int           // pages in all
	ProcessPages int           // pages by faults of one process
	Wait         time.Duration // time that a process has to run; one that does not run in it is not tried again
	Time         time.Duration // in all
	// Refuse returns why a process must be left alone, or "" if it need not be. It is
	// called anew each time, with the process as it is then.
	Refuse func(*introspect.Process) string
}

// Target is one mapping of the section whose pages are wanted.
type Target struct {
	Process *introspect.Process
	VAD     *introspect.VAD
}

// Pager requests pages of one guest. It is safe for concurrent use. It owns a session of
// actions, and neither the guest nor its source.
type Pager struct {
	guest *introspect.Guest // reads memory as it is now, past every cache
	ctl   source.Control
	opt   Options

	mu     sync.Mutex // one batch at a time
	cookie uint64
	pages  int           // requested with success
	spent  time.Duration // waiting
	used   map[uint64]*usage
}

// usage records what was requested of one process.
type usage struct {
	pages  int
	asleep bool // it did not run in its time
}

// Open makes a Pager for a guest. src is the guest's source; a cache in front of it is
// bypassed. It fails with ErrNoModule if src can only read, with ErrInferred if the guest's
// offsets are inferred, and with introspect.ErrActions32 for a 32-bit guest. The caller
// closes the Pager.
func Open(g *introspect.Guest, src source.Source, opt Options) (*Pager, error) {
	src = source.Uncached(src)
	host, ok := src.(source.Controller)
	if !ok {
		return nil, ErrNoModule
	}
	switch k := g.Kernel(); {
	case k.Inferred != "":
		return nil, ErrInferred
	case k.Bits == 32:
		return nil, fmt.Errorf("page in: Windows %s is %d-bit: %w", k.Version, k.Bits, introspect.ErrActions32)
	}
	if opt.Refuse == nil {
		return nil, errors.New("page in: nothing says which processes must be left alone")
	}
	ctl, err := host.Control()
	if err != nil {
		return nil, fmt.Errorf("open a control: %w", err)
	}
	for _, d := range []struct {
		v   *int
		def int
	}{{&opt.Pages, DefaultPages}, {&opt.ProcessPages, DefaultProcessPages}} {
		if *d.v <= 0 {
			*d.v = d.def
		}
	}
	for _, d := range []struct {
		v   *time.Duration
		def time.Duration
	}{{&opt.Wait, DefaultWait}, {&opt.Time, DefaultTime}} {
		if *d.v <= 0 {
			*d.v = d.def
		}
	}
	return &Pager{guest: g.WithSource(src), ctl: ctl, opt: opt, used: make(map[uint64]*usage)}, nil
}

// Close ends the session and cancels what is pending.
func (p *Pager) Close() error { return p.ctl.Close() }

// Pages returns the number of pages that were requested with success.
func (p *Pager) Pages() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pages
}

// Fetch makes the guest read in the pages at the addresses vas, which all targets map
// alike. It goes through one target after the other, until all pages are present or nothing
// more may be requested. It returns how many pages it requested with success; the caller
// reads memory to see which are present. Only the end of the guest or of ctx is an error.
func (p *Pager) Fetch(ctx context.Context, targets []Target, vas []uint64) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.pages
	targets = slices.Clone(targets)
	if len(targets) > 1 { // after the first target, those that served before come first
		slices.SortStableFunc(targets[1:], func(a, b Target) int { return cmp.Compare(p.usage(&b).pages, p.usage(&a).pages) })
	}
	tried := 0
	for i := range targets {
		if len(vas) == 0 || tried == maxTargets {
			break
		}
		asked, left, err := p.through(ctx, &targets[i], vas)
		if err != nil {
			return p.pages - before, err
		}
		if vas = left; asked {
			tried++
		}
	}
	return p.pages - before, nil
}

func (p *Pager) usage(t *Target) *usage {
	u := p.used[t.Process.EPROCESS]
	if u == nil {
		u = new(usage)
		p.used[t.Process.EPROCESS] = u
	}
	return u
}

// through requests pages in one process and returns those that are not present yet. tried
// reports whether any could be requested.
func (p *Pager) through(ctx context.Context, t *Target, vas []uint64) (tried bool, left []uint64, err error) {
	u := p.usage(t)
	begin, before := time.Now(), p.spent
	defer func() { p.spent = before + time.Since(begin) }()
	last := begin.Add(p.opt.Time - before)
	until := func() time.Time { return earlier(time.Now().Add(p.opt.Wait), last) }
	ran, limit := false, until()
	done := make(map[uint64]bool) // pages that must not be requested here, or not again
	for len(vas) > 0 && !u.asleep && time.Now().Before(limit) {
		room := min(batch, p.opt.Pages-p.pages, p.opt.ProcessPages-u.pages)
		if room <= 0 {
			return tried, vas, nil
		}
		id, ok, err := p.ready(ctx, t)
		if err != nil || !ok {
			return tried, vas, err
		}
		asked, applied, left, err := p.ask(ctx, t, id, vas, room, done, limit)
		p.pages, u.pages, vas = p.pages+len(applied), u.pages+len(applied), left
		if err != nil || asked == 0 {
			return tried, vas, err
		}
		if tried = true; len(applied) == 0 {
			continue // no thread of the process has taken the fault yet
		}
		ran, limit = true, until()
		if vas, err = p.await(ctx, id, applied, vas, limit); err != nil {
			return tried, vas, err
		}
	}
	u.asleep = u.asleep || !ran && len(vas) > 0
	return tried, vas, nil
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// ready reads the process and its range anew and reports whether pages may be requested of
// it.
func (p *Pager) ready(ctx context.Context, t *Target) (introspect.Identity, bool, error) {
	p.guest.Refresh()
	id, st, err := p.guest.Identify(t.Process.EPROCESS)
	if err != nil {
		return id, false, ended(ctx, err)
	}
	now, _ := p.guest.ProcessAt(t.Process.EPROCESS)
	if id.PID != t.Process.PID || now.PID != id.PID || !now.Created.Equal(t.Process.Created) || st.Exiting || st.Critical || now.PEB == 0 {
		return id, false, nil
	}
	// Some flags come only from the enumeration, such as that the process is hidden. They
	// still hold.
	for _, f := range t.Process.Flags {
		if !slices.Contains(now.Flags, f) {
			now.Flags = append(now.Flags, f)
		}
	}
	if p.opt.Refuse(&now) != "" {
		return id, false, nil
	}
	vads, _, err := p.guest.VADs(ctx, &now)
	if err != nil {
		return id, false, ended(ctx, err)
	}
	ok := slices.ContainsFunc(vads, func(v introspect.VAD) bool {
		return v.Image() && v.Start == t.VAD.Start && v.End == t.VAD.End && v.ControlArea() == t.VAD.ControlArea()
	})
	return id, ok, nil
}

// ended returns the error if it means that nothing more can be requested of the guest. Any
// other read error only costs the page that it concerns.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, source.ErrGone) || errors.Is(err, source.ErrClosed) {
		return err
	}
	return nil
}
