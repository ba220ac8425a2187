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

// ErrNoModule reports a guest that can only be read.
var ErrNoModule = errors.New("paging in takes the kvm-memhook module, and the guest is not read through it")

// ErrInferred reports a guest whose build is not known exactly.
var ErrInferred = errors.New("paging in takes a profile of the guest's build, and it was inferred")

// Defaults of Options.
const (
	DefaultPages        = 16384 // 64 MiB
	DefaultProcessPages = 4096  // 16 MiB
	DefaultWait         = 500 * time.Millisecond
	DefaultTime         = 30 * time.Second
)

const (
	// batch is how many pages are asked for at once; a session has room for more.
	batch = source.MaxActions / 2
	// slice is how long what was read of a range holds before it is read again.
	slice = 500 * time.Millisecond
	// slack is what an outcome may be late before the module is taken to have lost it.
	slack = 5 * time.Second
	// maxTargets bounds the processes that pages are waited for in at a time.
	maxTargets = 4
)

// Options bound what is asked of one guest. Zeros stand for the defaults.
type Options struct {
	Pages        int           // pages in all
	ProcessPages int           // pages by faults of one process
	Wait         time.Duration // how long a process is waited for; one that does not run in that time is not asked again
	Time         time.Duration // in all
	// Refuse says why a process must be left alone, "" where it need not be. It is asked
	// anew each time, of the process as it is then.
	Refuse func(*introspect.Process) string
}

// Target is a mapping of the section whose pages are wanted.
type Target struct {
	Process *introspect.Process
	VAD     *introspect.VAD
}

// Pager asks one guest for pages. It is safe for concurrent use and owns a session of
// actions, and neither the guest nor its source.
type Pager struct {
	guest *introspect.Guest // as it is now, past every cache
	ctl   source.Control
	opt   Options

	mu     sync.Mutex // one batch at a time
	cookie uint64
	pages  int           // asked for and applied
	spent  time.Duration // waiting
	used   map[uint64]*usage
}

// usage is what a process, by its EPROCESS, has done for us.
type usage struct {
	pages  int
	asleep bool // it did not run in the time it had
}

// Open makes a pager for a guest. src is the guest's source; a cache before it is passed
// by. It fails with ErrNoModule where src can only read, with ErrInferred, and with
// introspect.ErrActions32 for a 32-bit guest.
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
		return nil, fmt.Errorf("open a session of actions: %w", err)
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
	return &Pager{guest: g.Through(src), ctl: ctl, opt: opt, used: make(map[uint64]*usage)}, nil
}

// Close ends the session; what is pending is cancelled.
func (p *Pager) Close() error { return p.ctl.Close() }

// Pages is how many pages were asked for with success.
func (p *Pager) Pages() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pages
}

// Fetch has the guest read the pages at the addresses vas in, which all targets map alike,
// through one target after the other, until they are there or nothing more may be asked.
// It returns how many it asked for with success; whether a page is there now, memory tells. Only a guest
// that has gone and the end of ctx are errors.
func (p *Pager) Fetch(ctx context.Context, targets []Target, vas []uint64) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.pages
	targets = slices.Clone(targets)
	if len(targets) > 1 { // behind the first, who has served before comes before others
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

// through asks for pages in one process and returns those that are not there yet. tried
// tells whether any could be asked for.
func (p *Pager) through(ctx context.Context, t *Target, vas []uint64) (tried bool, left []uint64, err error) {
	u := p.usage(t)
	begin, before := time.Now(), p.spent
	defer func() { p.spent = before + time.Since(begin) }()
	last := begin.Add(p.opt.Time - before)
	until := func() time.Time { return earlier(time.Now().Add(p.opt.Wait), last) }
	ran, limit := false, until()
	done := make(map[uint64]bool) // pages that are not to be asked for here, or not again
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
			continue // no thread of it has come by yet
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

// ready reads the process and its range anew and tells whether it may be asked.
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
	// What only the enumeration knows of it, such as that it is hidden, still holds.
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

// ended returns an error where nothing more can be asked of the guest; what else cannot be
// read costs the page it is about.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, source.ErrGone) || errors.Is(err, source.ErrClosed) {
		return err
	}
	return nil
}
