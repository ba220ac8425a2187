package main

import (
	"context"

	"github.com/urfave/cli/v2"

	"vmav.dev/vmav/internal/report"
	"vmav.dev/vmav/internal/sweep"
	"vmav.dev/vmav/internal/winstruct"
	"vmav.dev/vmav/internal/worker"
)

// sweepFunc sweeps one guest: sweep.Domain, or worker.Domain.
type sweepFunc func(context.Context, sweep.Target, winstruct.Finder, sweep.Scanner, sweep.Results, sweep.Options) (report.DomainScan, error)

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
