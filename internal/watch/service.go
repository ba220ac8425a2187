package watch

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"vmav.dev/vmav/internal/domain"
	"vmav.dev/vmav/internal/lock"
)

// Service watches the domains of a host.
type Service struct {
	opt    Options
	budget *budget
	engine *engine
	begin  time.Time

	mu        sync.Mutex
	watcher   *domain.Watcher
	connected bool
	followers map[string]*follower // by UUID
	counts    Counts
}

// Counts are what a Service has done since it started.
type Counts struct {
	Sweeps      int `json:"sweeps"`      // scans of everything in a guest
	Newcomers   int `json:"newcomers"`   // new processes
	Incremental int `json:"incremental"` // scans of what was new
	Findings    int `json:"findings"`
	Kills       int `json:"kills"` // processes that were killed
	Errors      int `json:"errors"`
}

// ErrRunning reports that another service is running.
var ErrRunning = errors.New("a service is running already")

// New makes a service, which Run runs.
func New(opt Options) (*Service, error) {
	if err := opt.complete(); err != nil {
		return nil, err
	}
	return &Service{opt: opt, budget: newBudget(&opt), engine: newEngine(opt.Engine, opt.Log), begin: time.Now(), followers: make(map[string]*follower)}, nil
}

// Run watches until ctx ends. Before it returns, it stops what is under way and undoes what
// that did to a guest.
func (s *Service) Run(ctx context.Context) error {
	only, err := lock.Try(filepath.Join(s.opt.Runtime, "watch.lock"))
	if errors.Is(err, lock.ErrHeld) {
		return ErrRunning
	}
	if err != nil {
		return err
	}
	defer only.Release()
	sock, err := s.listen()
	if err != nil {
		return err
	}
	defer sock.close()
	defer s.engine.Close()
	go s.engine.tend(ctx)
	w, err := s.connect(ctx, domain.WatchOptions{
		Fallback: func(why error) { s.opt.Log.Warn("without the module nothing can be killed", "reason", why) }})
	if err != nil {
		return err
	}
	defer w.Close()
	defer s.stopAll()
	tell("READY=1\nSTATUS=watching " + s.opt.URI)
	defer tell("STOPPING=1")
	go s.heed(ctx, sock.hints)
	alive, stop := watchdog()
	defer stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-alive:
			tell("WATCHDOG=1")
		case u, ok := <-w.Updates():
			if !ok {
				return fmt.Errorf("libvirt is not followed any more: %w", context.Cause(ctx))
			}
			s.update(ctx, u)
		}
	}
}

// connect starts to watch libvirt's domains. o has what differs between Run and Once. The
// caller closes the Watcher.
func (s *Service) connect(ctx context.Context, o domain.WatchOptions) (*domain.Watcher, error) {
	o.URI, o.Backend, o.Log = s.opt.URI, s.opt.Backend, s.opt.Log
	w, err := domain.Watch(ctx, o)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.watcher = w
	s.mu.Unlock()
	return w, nil
}

// update brings the followers in line with what libvirt says.
func (s *Service) update(ctx context.Context, u domain.Update) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch u.Kind {
	case domain.EventLost:
		s.connected = false
		s.opt.Log.Warn("lost the connection to libvirt; domains are watched on", "error", u.Err)
		return
	case domain.EventListed:
		s.connected = true
		running := make(map[string]bool)
		for _, d := range u.Domains {
			running[d.UUID] = d.Running
			s.follow(ctx, d, u.Kind)
		}
		for uuid, f := range s.followers {
			if !running[uuid] {
				s.drop(f, "not running any more")
			}
		}
		return
	}
	s.opt.Log.Debug("event", "domain", u.Domain.Name, "kind", u.Kind, "detail", u.Detail, "state", u.Domain.State)
	if u.Domain.Running {
		s.follow(ctx, u.Domain, u.Kind)
	} else if f := s.followers[u.Domain.UUID]; f != nil {
		s.drop(f, string(u.Kind)+" "+u.Detail)
	}
}

// follow makes sure that a running domain has a follower that knows its state. The caller
// holds the lock.
func (s *Service) follow(ctx context.Context, d domain.Domain, kind domain.EventKind) {
	if !d.Running || !s.opt.wanted(d.Name) {
		return
	}
	f := s.followers[d.UUID]
	if f != nil && f.incarnation() != d.ID {
		s.drop(f, "started anew") // the end of its last run was missed
		f = nil
	}
	if f == nil {
		s.opt.Log.Info("domain", "domain", d.Name, "uuid", d.UUID, "state", d.State, "event", kind)
		f = newFollower(s, d)
		s.followers[d.UUID] = f
		f.start(ctx)
		return
	}
	f.changed(d, kind)
}

// drop ends a follower. The caller holds the lock.
func (s *Service) drop(f *follower, why string) {
	s.opt.Log.Info("domain gone", "domain", f.name, "reason", why)
	delete(s.followers, f.uuid)
	f.stop()
}

// stopAll ends all followers and waits for them.
func (s *Service) stopAll() {
	s.mu.Lock()
	all := s.followers
	s.followers = make(map[string]*follower)
	s.mu.Unlock()
	for _, f := range all {
		f.stop()
	}
	for _, f := range all {
		<-f.done
	}
}

// heed looks at domains that a hook has reported. Their events may be late, or lost with
// the connection. libvirt answers for a domain only when the operation that the hook is
// part of is over. So heed waits for it, in a goroutine where nothing else has to.
func (s *Service) heed(ctx context.Context, hints <-chan Hint) {
	for {
		var h Hint
		select {
		case <-ctx.Done():
			return
		case h = <-hints:
		}
		s.opt.Log.Debug("hook", "domain", h.Domain, "operation", h.Operation)
		host, err := s.host()
		if err != nil {
			continue // the domain is in the list that follows a connection
		}
		d, err := host.Find(h.Domain)
		if err == nil && d.Running && ctx.Err() == nil {
			s.update(ctx, domain.Update{Kind: domain.EventStarted, Detail: "hook", Domain: d})
		}
	}
}

// host returns the present connection to libvirt.
func (s *Service) host() (*domain.Host, error) {
	s.mu.Lock()
	w := s.watcher
	s.mu.Unlock()
	if h := w.Host(); h != nil {
		return h, nil
	}
	return nil, domain.ErrNoDaemon
}

func (s *Service) count(f func(*Counts)) {
	s.mu.Lock()
	f(&s.counts)
	s.mu.Unlock()
}

// SocketPath returns the path of the service's socket in a runtime directory.
func SocketPath(runtime string) string { return filepath.Join(runtime, "vmav.sock") }
