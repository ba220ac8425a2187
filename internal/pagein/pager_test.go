package pagein

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/ntguest"
	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/source/sourcetest"
	"vmav.dev/vmav/internal/winstruct"
)

// host is the laid-out test guest with a host that delivers page-ins as the module would.
// It is for what cannot be made to happen on purpose in a real one; the module and a
// running guest are in internal/e2e/lab, TestScanPagesIn.
type host struct {
	*sourcetest.Guest
	t *testing.T
	m *ntguest.Machine

	mu      sync.Mutex
	runs    map[uint64]bool      // DTBs of processes that enter user mode
	serve   bool                 // the guest's kernel gets the pages
	before  func(*source.Action) // what happens between an action's making and its delivery
	actions []source.Action
	pending map[uint64]*time.Timer
	events  chan source.Event
}

func (h *host) Control() (source.Control, error) { return control{h}, nil }

type control struct{ *host }

func (c control) SetHooks(source.Hooks) error { return nil }
func (c control) Close() error                { return nil }

func (c control) Event(ctx context.Context) (source.Event, error) {
	select {
	case ev := <-c.events:
		return ev, nil
	case <-ctx.Done():
		return source.Event{}, ctx.Err()
	}
}

func (c control) Cancel(cookie uint64) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	timer := c.pending[cookie]
	delete(c.pending, cookie)
	return timer != nil && timer.Stop(), nil
}

func (c control) Do(a *source.Action) error {
	if a.Kind != source.ActionPageIn || a.ErrorCode != source.FaultUser || len(a.Guards) == 0 || len(a.Guards) > source.MaxGuards {
		c.t.Errorf("action %+v", a)
	}
	if c.before != nil {
		c.before(a)
	}
	var b [8]byte
	for _, g := range a.Guards {
		if err := c.ReadPhys(b[:], g.GPA); err != nil {
			return err
		}
		if binary.LittleEndian.Uint64(b[:])&g.Mask != g.Value {
			c.events <- source.Event{Kind: source.EventCancelled, Reason: source.ReasonGuard, Cookie: a.Cookie}
			return nil
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.runs[a.DTB] {
		c.pending[a.Cookie] = time.AfterFunc(a.Timeout, func() { c.events <- source.Event{Kind: source.EventExpired, Cookie: a.Cookie} })
		return nil
	}
	c.actions = append(c.actions, *a)
	if entry := a.Guards[len(a.Guards)-1]; c.serve {
		c.Put(entry.GPA, 0x1000<<12|0x25, 8) // valid, for user mode, accessed
	}
	c.events <- source.Event{Kind: source.EventApplied, Cookie: a.Cookie}
	return nil
}

// asked are the addresses that faults were delivered for.
func (h *host) asked() []uint64 {
	var out []uint64
	for _, a := range h.actions {
		out = append(out, a.Address)
	}
	return out
}

var machine = sync.OnceValues(func() (*ntguest.Machine, error) {
	return ntguest.Lay(ntguest.Options{Build: "10.0.19041", Seed: 5, MemoryMiB: 256, Absent: true})
})

// scene is a guest with pages that are in no memory.
type scene struct {
	*host
	g     *introspect.Guest
	procs []introspect.Process
	// what of the largest image with such pages is wanted, and who maps it
	target Target
	vas    []uint64
}

func newScene(t *testing.T) *scene {
	t.Helper()
	m, err := machine()
	if err != nil {
		t.Fatal(err)
	}
	h := &host{Guest: sourcetest.New(m, m.Memory), t: t, m: m, runs: make(map[uint64]bool), serve: true,
		pending: make(map[uint64]*time.Timer), events: make(chan source.Event, 256)}
	s := &scene{host: h}
	if s.g, err = introspect.Open(context.Background(), h, winstruct.BuiltIn()); err != nil {
		t.Fatal(err)
	}
	if s.procs, _, err = s.g.Processes(context.Background()); err != nil {
		t.Fatal(err)
	}
	for i := range s.procs {
		p := &s.procs[i]
		if p.Name != "conhost.exe" {
			continue
		}
		id, _, err := s.g.Identify(p.EPROCESS)
		if err != nil {
			t.Fatal(err)
		}
		vads, _, err := s.g.VADs(context.Background(), p)
		if err != nil {
			t.Fatal(err)
		}
		for j := range vads {
			v := &vads[j]
			var vas []uint64
			for va := v.Start; v.Image() && va < v.End; va += source.PageSize {
				var page [source.PageSize]byte
				if guards, _, err := s.g.PageInGuards(id, va); err == nil && guards != nil &&
					errors.Is(s.g.ReadFile(page[:], v, va), introspect.ErrNotPresent) {
					vas = append(vas, va)
				}
			}
			if len(vas) > len(s.vas) {
				s.target, s.vas = Target{p, v}, vas
			}
		}
	}
	if len(s.vas) < 40 {
		t.Fatalf("only %d pages are absent", len(s.vas))
	}
	s.runs[s.target.Process.DTB] = true
	return s
}

func (s *scene) open(opt Options) *Pager {
	s.t.Helper()
	if opt.Refuse == nil {
		opt.Refuse = func(*introspect.Process) string { return "" }
	}
	if opt.Wait == 0 {
		opt.Wait = 10 * time.Second // by far longer than anything here takes
	}
	p, err := Open(s.g, source.NewCache(s.host, 4), opt)
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}

func (s *scene) fetch(p *Pager, want int, targets ...Target) {
	s.t.Helper()
	n, err := p.Fetch(context.Background(), targets, s.vas)
	if err != nil || n != want {
		s.t.Errorf("%d pages asked for, %v; want %d", n, err, want)
	}
}

// Every page is asked for once, and comes.
func TestFetch(t *testing.T) {
	s := newScene(t)
	p := s.open(Options{})
	s.fetch(p, len(s.vas), s.target)
	got := s.asked()
	slices.Sort(got)
	if !slices.Equal(got, s.vas) || p.Pages() != len(s.vas) {
		t.Errorf("asked for %#x, want %#x; %d pages", got, s.vas, p.Pages())
	}
	s.fetch(p, 0, s.target) // they are there
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

// A page that does not come is asked for once in a process, and no more.
func TestFetchGivesUp(t *testing.T) {
	s := newScene(t)
	s.serve = false
	s.vas = s.vas[:3]
	p := s.open(Options{Wait: 50 * time.Millisecond})
	s.fetch(p, 3, s.target)
	s.fetch(p, 3, s.target) // another image's turn: once more
	if len(s.actions) != 6 {
		t.Errorf("asked for %#x", s.asked())
	}
}

// What is asked of one process, and of the guest, has a bound.
func TestBudgets(t *testing.T) {
	for _, opt := range []Options{{Pages: 35}, {ProcessPages: 35}} {
		s := newScene(t)
		p := s.open(opt)
		s.fetch(p, 35, s.target)
		s.fetch(p, 0, s.target)
	}
	s := newScene(t)
	s.runs = nil
	p := s.open(Options{Wait: time.Hour, Time: 20 * time.Millisecond})
	s.fetch(p, 0, s.target)
	s.fetch(p, 0, s.target)
}

// A process that does not run is waited for once; others that map the section stand in.
func TestSleepers(t *testing.T) {
	s := newScene(t)
	s.runs = map[uint64]bool{}
	p := s.open(Options{Wait: 20 * time.Millisecond})
	s.fetch(p, 0, s.target)
	if !p.used[s.target.Process.EPROCESS].asleep {
		t.Error("it is not taken to sleep")
	}
	// It awakes, but is not asked again.
	s.runs[s.target.Process.DTB] = true
	s.fetch(p, 0, s.target)
	if len(s.actions) != 0 {
		t.Errorf("asked for %#x", s.asked())
	}
}

// Processes are left alone that the caller says, and such as are not what they were.
func TestLeftAlone(t *testing.T) {
	var off struct {
		ExitTime uint32 `win:"_EPROCESS.ExitTime"`
		PID      uint32 `win:"_EPROCESS.UniqueProcessId"`
		VADRoot  uint32 `win:"_EPROCESS.VadRoot.Root"`
	}
	profile, err := winstruct.BuiltIn().Find(newScene(t).m.Build.Identity)
	if err == nil {
		err = winstruct.Compile(profile, &off)
	}
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(s *scene, gpa func(uint32) uint64) Options{
		"refused": func(*scene, func(uint32) uint64) Options {
			return Options{Refuse: func(p *introspect.Process) string { return "it is " + p.Name }}
		},
		"hidden": func(s *scene, _ func(uint32) uint64) Options {
			s.target.Process.Flags = append(s.target.Process.Flags, introspect.FlagHidden)
			return Options{Refuse: func(p *introspect.Process) string {
				if slices.Contains(p.Flags, introspect.FlagHidden) {
					return "it is hidden"
				}
				return ""
			}}
		},
		"exited": func(s *scene, gpa func(uint32) uint64) Options {
			s.Put(gpa(off.ExitTime), 0x1dcaa21c3a2d7c3, 8)
			return Options{}
		},
		"another process": func(s *scene, gpa func(uint32) uint64) Options {
			s.Put(gpa(off.PID), 0x7fc, 8)
			return Options{}
		},
		"unmapped": func(s *scene, gpa func(uint32) uint64) Options {
			s.Put(gpa(off.VADRoot), 0, 8)
			return Options{}
		},
		"another process in the moment of delivery": func(s *scene, gpa func(uint32) uint64) Options {
			s.before = func(*source.Action) { s.Put(gpa(off.PID), 0x7fc, 8) }
			return Options{}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene(t)
			opt := change(s, func(o uint32) uint64 {
				at, err := s.g.Memory().Translate(s.target.Process.EPROCESS + uint64(o))
				if err != nil {
					t.Fatal(err)
				}
				return at
			})
			p := s.open(opt)
			s.fetch(p, 0, s.target)
			if len(s.actions) != 0 {
				t.Errorf("asked for %#x", s.asked())
			}
		})
	}
}

// However many processes before it must be left alone, one that may be asked is, and the
// next time before others.
func TestStandIns(t *testing.T) {
	s := newScene(t)
	var targets []Target
	for i := range s.procs {
		if len(targets) < 2*maxTargets {
			targets = append(targets, Target{&s.procs[i], s.target.VAD})
		}
	}
	p := s.open(Options{Refuse: func(p *introspect.Process) string {
		if p.PID != s.target.Process.PID {
			return "it is another one"
		}
		return ""
	}})
	all := s.vas
	s.vas = all[:20]
	s.fetch(p, 20, append(targets, s.target)...)
	s.vas = all
	s.fetch(p, len(all)-20, append(targets, s.target)...)
}

// The end of the caller and of the guest are errors, at once.
func TestEnds(t *testing.T) {
	s := newScene(t)
	s.runs = nil
	p := s.open(Options{Wait: time.Hour, Time: time.Hour})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := p.Fetch(ctx, []Target{s.target}, s.vas); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	if len(s.pending) != 0 {
		t.Errorf("%d actions are pending", len(s.pending))
	}
	s.End()
	if _, err := p.Fetch(context.Background(), []Target{s.target}, s.vas); !errors.Is(err, source.ErrGone) {
		t.Errorf("%v", err)
	}
}

// A guest that can only be read, and one that is not known exactly, are not asked.
func TestOpenRefuses(t *testing.T) {
	s := newScene(t)
	if _, err := Open(s.g, struct{ source.Source }{s.host}, Options{}); !errors.Is(err, ErrNoModule) {
		t.Errorf("without actions: %v", err)
	}
	if _, err := Open(s.g, s.host, Options{}); err == nil {
		t.Error("nothing says which processes must be left alone")
	}
}
