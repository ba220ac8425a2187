package watch

import (
	"cmp"
	"os"
	"slices"
	"time"
)

// Status is the state of a Service.
type Status struct {
	PID       int            `json:"pid"`
	Since     time.Time      `json:"since"`
	URI       string         `json:"uri"`
	Connected bool           `json:"connected"` // to libvirt
	Engine    string         `json:"engine,omitempty"`
	EngineErr string         `json:"engine_error,omitempty"`
	CPU       float64        `json:"cpu_seconds"` // processor time used so far
	Counts    Counts         `json:"counts"`
	Domains   []DomainStatus `json:"domains"`
}

// DomainStatus is the state of one domain of a Service.
type DomainStatus struct {
	Name      string     `json:"name"`
	UUID      string     `json:"uuid"`
	State     string     `json:"state"` // "opening", "booting", "not Windows", "waiting", "watched", "paused"
	Reason    string     `json:"reason,omitempty"`
	Build     string     `json:"build,omitempty"`
	Source    string     `json:"source,omitempty"`
	Processes int        `json:"processes"`
	Sweeping  bool       `json:"sweeping"`         // a sweep is under way
	Status    string     `json:"status,omitempty"` // result of the last sweep
	LastSweep *time.Time `json:"last_sweep,omitempty"`
	NextSweep *time.Time `json:"next_sweep,omitempty"`
	Findings  int        `json:"findings"`
	Kills     int        `json:"kills"`
	Due       int        `json:"due"` // processes that wait to be scanned
}

// Status returns the state of the service and of its domains.
func (s *Service) Status() Status {
	out := Status{PID: os.Getpid(), Since: s.begin.UTC(), URI: s.opt.URI, CPU: s.budget.used().Seconds(), Domains: []DomainStatus{}}
	version, err := s.engine.state()
	out.Engine = version
	if err != nil {
		out.EngineErr = err.Error()
	}
	s.mu.Lock()
	out.Connected, out.Counts = s.connected, s.counts
	var all []*follower
	for _, f := range s.followers {
		all = append(all, f)
	}
	s.mu.Unlock()
	for _, f := range all {
		out.Domains = append(out.Domains, f.state())
	}
	slices.SortFunc(out.Domains, func(a, b DomainStatus) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

func (f *follower) state() DomainStatus {
	f.mu.Lock()
	st, w := f.status, f.guest
	if st.State == "watched" && f.domain.Paused {
		st.State = "paused"
	}
	f.mu.Unlock()
	if w != nil {
		st.Due = w.waiting()
	}
	return st
}

// waiting returns how many processes are due.
func (w *guestWatch) waiting() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, now := 0, time.Now()
	for _, p := range w.procs {
		if p.busy || !p.due.IsZero() && p.due.Before(now) {
			n++
		}
	}
	return n
}
