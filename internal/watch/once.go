package watch

import (
	"context"
	"strings"
	"time"

	"vmav.dev/vmav/internal/domain"
)

// Once sweeps some domains, each as soon as its kernel is up. It ends when that is done,
// when none of the domains runs any longer, or when ctx ends. It stands in for a service
// and takes neither its socket nor its lock. Once calls pending now and then; pending
// returns the names of further domains.
func (s *Service) Once(ctx context.Context, names []string, pending func() []string) error {
	// libvirt may not know the domain yet, or not answer while it starts.
	const grace = time.Minute
	s.opt.Include, s.opt.Exclude = patterns(names), nil
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer s.engine.Close()
	w, err := s.connect(ctx, domain.WatchOptions{Resync: 5 * time.Second})
	if err != nil {
		return err
	}
	defer w.Close()
	defer s.stopAll()
	seen := make(map[string]time.Time) // when each was asked for
	for _, n := range names {
		seen[n] = time.Now()
	}
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case u, ok := <-w.Updates():
			if !ok {
				return ctx.Err()
			}
			s.update(ctx, u)
		case <-tick.C:
			for _, n := range pending() {
				if _, known := seen[n]; !known {
					seen[n] = time.Now()
					s.mu.Lock()
					s.opt.Include = append(s.opt.Include, patterns([]string{n})...)
					s.mu.Unlock()
				}
			}
			if s.done(seen, grace) {
				return nil
			}
		}
	}
}

// notWindows is how long a domain may look as if it were not Windows, or be unreadable,
// before that is believed. Boot loaders look like no system at all.
const notWindows = 5 * time.Minute

// done reports whether each domain was swept, does not run, or is not Windows. asked has
// the times when the domains were asked for.
func (s *Service) done(asked map[string]time.Time, grace time.Duration) bool {
	states := make(map[string]DomainStatus)
	for _, d := range s.Status().Domains {
		states[d.Name] = d
	}
	for name, since := range asked {
		d, runs := states[name]
		switch {
		case !runs && time.Since(since) > grace:
		case runs && d.Status != "" && !d.Sweeping:
		case runs && (d.State == "not Windows" || d.State == "waiting") && time.Since(since) > notWindows:
		default:
			return false
		}
	}
	return true
}

// patterns returns patterns that match exactly the given names.
func patterns(names []string) []string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(strings.ReplaceAll(n, "/", "_"))
	}
	return out
}
