package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"

	"vmav.dev/vmav/internal/config"
	"vmav.dev/vmav/internal/domain"
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/policy"
	"vmav.dev/vmav/internal/scan"
	"vmav.dev/vmav/internal/sweep"
)

// allOptions are the options of a scan of all domains, which cron, a timer and people may
// start at the same time.
type allOptions struct {
	runtime  string // directory of locks
	state    string // directory of the checkpoint
	wait     bool
	resume   bool
	deadline time.Duration // 0 for none
	identity string        // identifies what the result depends on besides the guests
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

// errDeadline is the reason of a scan that ends at its deadline.
var errDeadline = errors.New("the deadline has passed")

// bound returns ctx with the deadline.
func (o allOptions) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if o.deadline == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, o.deadline, errDeadline)
}

// runAlone runs a scan of all domains, unless another one makes it unnecessary.
func runAlone(ctx context.Context, e *env, o scanOptions, scan func() error) error {
	path := filepath.Join(o.all.runtime, "sweep.lock")
	var turn *sweep.Turn
	var last *sweep.Last
	var err error
	if o.all.wait {
		turn, last, err = sweep.Wait(ctx, path, o.all.identity)
	} else {
		turn, err = sweep.Try(path)
	}
	switch {
	case errors.Is(err, sweep.ErrUnderWay):
		if !o.compact {
			e.warn("%v: nothing is done", err)
		}
		return nil
	case err != nil:
		return err
	case last != nil:
		if !o.compact {
			e.warn("a scan of all domains that began at %s took this one's place", clock(&last.Started))
		}
		return statusError(last.Status)
	}
	defer turn.Release()
	err = scan()
	if ctx.Err() == nil {
		turn.Finished(exitStatus(ctx, err), o.all.identity)
	}
	return err
}

// statusError returns an error that leads to an exit status.
func statusError(status int) error {
	switch status {
	case exitClean:
		return nil
	case exitFound:
		return errFound
	}
	return errIncomplete
}

// identity identifies what the result of a scan depends on besides the guests and the
// engine: the flags, and the text of the policy.
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

// checkpoint opens the checkpoint of a sweep. It returns nil if none is to be kept.
func (o scanOptions) checkpoint(c *cli.Context, e *env, engine finding.Engine, started time.Time) (*sweep.Checkpoint, error) {
	if !c.Bool("all") || len(o.request.PIDs) > 0 {
		return nil, nil
	}
	p, err := sweep.OpenCheckpoint(filepath.Join(o.all.state, "sweep.checkpoint"), sweep.Run{Boot: sweep.Boot(),
		Engine: engine.Version + "/" + engine.Database, Options: o.all.identity, Started: started.UTC()}, o.all.resume)
	if err != nil && !o.all.resume {
		e.warn("%v: if this scan is interrupted, it cannot be resumed", err)
		return nil, nil
	}
	return p, err
}

func keyOf(d domain.Domain) sweep.Key { return sweep.Key{UUID: d.UUID, ID: d.ID} }

// notReached returns the results of targets whose turn did not come.
func notReached(targets []scanTarget, why error) []finding.Scan {
	var out []finding.Scan
	for _, t := range targets {
		d := scan.Empty(scan.Target{Name: t.domain.Name, UUID: t.domain.UUID, State: t.domain.State})
		d.Reason = fmt.Sprintf("not reached: %v", why)
		out = append(out, d)
	}
	return out
}
