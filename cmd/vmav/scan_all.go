package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"vmav.dev/vmav/internal/checkpoint"
	"vmav.dev/vmav/internal/config"
	"vmav.dev/vmav/internal/domain"
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/lock"
	"vmav.dev/vmav/internal/policy"
	"vmav.dev/vmav/internal/sweep"
	"vmav.dev/vmav/internal/watch"
)

// allOptions are the options of a scan of all domains that make it one of many: from cron,
// from a timer, from somebody's hand.
type allOptions struct {
	runtime  string // directory of locks
	state    string // directory of the checkpoint
	wait     bool
	resume   bool
	deadline time.Duration // 0 for none
	identity string        // of what the result depends on beside the guests
}

func parseAll(c *cli.Context, s *config.Config) (o allOptions, err error) {
	o = allOptions{runtime: s.RuntimeDirectory, state: s.StateDirectory, wait: c.Bool("wait"), resume: c.Bool("resume"), deadline: c.Duration("deadline")}
	if o.deadline < 0 || o.deadline == 0 && c.IsSet("deadline") {
		return o, fmt.Errorf("a deadline of %v: it is a time from now", o.deadline)
	}
	for _, name := range []string{"wait", "resume"} {
		if c.Bool(name) && !c.Bool("all") {
			return o, fmt.Errorf("--%s is for --all", name)
		}
	}
	if o.resume && len(c.Uint64Slice("pid")) > 0 {
		return o, errors.New("--resume is for whole domains: it does not go with --pid")
	}
	return o, nil
}

// errDeadline is why a scan ends at its deadline.
var errDeadline = errors.New("the deadline has passed")

// bound gives ctx the deadline.
func (o allOptions) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if o.deadline == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, o.deadline, errDeadline)
}

// lastRun is what the lock's file says of the scan of all domains that had it last.
type lastRun struct {
	Started  time.Time `json:"started"`
	Finished time.Time `json:"finished"`
	Status   int       `json:"status"`
	Options  string    `json:"options"`
}

// runAlone runs a scan of all domains, unless another one makes it unnecessary.
func runAlone(ctx context.Context, e *env, o scanOptions, scan func() error) error {
	asked := time.Now()
	path := filepath.Join(o.all.runtime, "sweep.lock")
	l, err := lock.Try(path)
	if errors.Is(err, lock.ErrHeld) && !o.all.wait {
		if !o.compact {
			e.warn("another scan of all domains is under way: nothing is done")
		}
		return nil
	}
	if errors.Is(err, lock.ErrHeld) {
		l, err = lock.Wait(ctx, path)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("%w: runtime_directory of the settings says where locks are", err)
	}
	defer l.Release()
	if last, ok := readLast(l.File()); ok && o.all.wait && last.Started.After(asked) && last.Options == o.all.identity {
		if !o.compact {
			e.warn("a scan of all domains that began at %s took this one's place", clock(&last.Started))
		}
		return statusError(last.Status)
	}
	started := time.Now().UTC()
	err = scan()
	if ctx.Err() == nil {
		writeLast(l.File(), lastRun{started, time.Now().UTC(), exitStatus(ctx, err), o.all.identity})
	}
	return err
}

// statusError is the error that has an exit status.
func statusError(status int) error {
	switch status {
	case exitClean:
		return nil
	case exitFound:
		return errFound
	}
	return errIncomplete
}

func readLast(f *os.File) (last lastRun, ok bool) {
	text, err := io.ReadAll(io.NewSectionReader(f, 0, 4096))
	return last, err == nil && json.Unmarshal(text, &last) == nil
}

// writeLast notes the run for those who wait. What it cannot note, they do again.
func writeLast(f *os.File, last lastRun) {
	if text, err := json.Marshal(last); err == nil && f.Truncate(0) == nil {
		_, _ = f.WriteAt(text, 0)
	}
}

// identity names what the result of a scan depends on beside the guests and the engine: its
// flags, and the text of its policy.
func identity(c *cli.Context, p policy.Policy) (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %q %v %v %v %q", c.String("action"), c.String("clamd"), c.StringSlice("database"), c.Float64("min-coverage"),
		c.Uint64Slice("pid"), p.DryRun, p.Surrogates)
	if p.File != "" {
		text, err := os.ReadFile(p.File)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
		h.Write(text)
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:16]), nil
}

// scanProgress is the checkpoint of a sweep; the zero one keeps none.
type scanProgress struct {
	checkpoint *checkpoint.File
	e          *env
}

// begin opens the checkpoint of a sweep.
func (o scanOptions) begin(c *cli.Context, e *env, engine finding.Engine, started time.Time) (scanProgress, error) {
	if !c.Bool("all") || len(o.sweep.PIDs) > 0 {
		return scanProgress{}, nil
	}
	j, err := checkpoint.Open(filepath.Join(o.all.state, "sweep.checkpoint"), checkpoint.Run{Boot: checkpoint.Boot(),
		Engine: engine.Version + "/" + engine.Database, Options: o.all.identity, Started: started.UTC()}, o.all.resume)
	if err != nil && o.all.resume {
		return scanProgress{}, err
	}
	if err != nil {
		e.warn("%v: an interruption cannot be resumed", err)
		return scanProgress{}, nil
	}
	return scanProgress{j, e}, nil
}

func keyOf(d domain.Domain) checkpoint.Key { return checkpoint.Key{UUID: d.UUID, ID: d.ID} }

func (p scanProgress) find(d domain.Domain) (finding.Scan, bool) {
	if p.checkpoint == nil {
		return finding.Scan{}, false
	}
	return p.checkpoint.Find(keyOf(d))
}

func (p scanProgress) add(d domain.Domain, s finding.Scan) {
	if p.checkpoint == nil {
		return
	}
	if err := p.checkpoint.Add(keyOf(d), s); err != nil {
		p.e.warn("%v", err)
	}
}

func (p scanProgress) close(complete bool) {
	if p.checkpoint != nil {
		_ = p.checkpoint.Close(complete)
	}
}

// notReached are the results of domains whose turn did not come.
func notReached(targets []scanTarget, why error) []finding.Scan {
	var out []finding.Scan
	for _, t := range targets {
		d := sweep.Empty(sweep.Target{Name: t.domain.Name, UUID: t.domain.UUID, State: t.domain.State})
		d.Reason = fmt.Sprintf("not reached: %v", why)
		out = append(out, d)
	}
	return out
}

// killLock is the lock that all take who kill in a domain; none for an image.
func (o allOptions) killLock(ctx context.Context, d domain.Domain) sync.Locker {
	if d.UUID == "" {
		return nil
	}
	return lock.NewLocker(ctx, watch.KillLock(o.runtime, d.UUID))
}
