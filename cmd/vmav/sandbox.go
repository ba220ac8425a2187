package main

import (
	"context"
	"fmt"
	"os"

	"github.com/urfave/cli/v2"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/ready"
	"vmav.dev/vmav/internal/sweep"
	"vmav.dev/vmav/internal/watch"
	"vmav.dev/vmav/internal/winstruct"
	"vmav.dev/vmav/internal/worker"
)

// sweepFunc sweeps one guest: sweep.Domain, or worker.Domain.
type sweepFunc func(context.Context, sweep.Target, winstruct.Finder, sweep.Scanner, sweep.Memory, sweep.Options) (finding.Scan, error)

func noSandboxFlag() cli.Flag {
	return &cli.BoolFlag{Name: "no-sandbox", Usage: "parse what guests wrote in this process, with all its rights; for debugging"}
}

// sweeper is how a command sweeps guests: each in a sandboxed worker, unless its flag
// says otherwise.
func sweeper(c *cli.Context, e *env) sweepFunc {
	if c.Bool("no-sandbox") {
		return sweep.Domain
	}
	r := &worker.Runner{Note: func(text string) { e.warn("%s", text) }}
	return r.Domain
}

// workers is a service's sweeper: each sweep in a sandboxed worker.
type workers struct{ *worker.Runner }

func (w workers) Keep() watch.GuestSweeper { return w.Runner.Keep() }

// workerMain is this program as a worker.
func workerMain() int {
	status, err := worker.Main(os.Args)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	return status
}

// checkWorker starts a worker and says what keeps it in.
func checkWorker(ctx context.Context) ready.Answer {
	r := ready.Answer{What: "worker"}
	s, err := new(worker.Runner).Try(ctx)
	if err != nil {
		r.Detail, r.Fix = err.Error(), "vmav scan --all --no-sandbox # does without"
		return r
	}
	r.OK, r.Detail = true, "starts; kept in by seccomp"
	if s.Landlock > 0 {
		r.Detail += fmt.Sprintf(" and Landlock %d", s.Landlock)
	}
	if s.User != "" {
		r.Detail += ", runs as " + s.User
	}
	return r
}
