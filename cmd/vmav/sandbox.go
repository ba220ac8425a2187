package main

import (
	"context"
	"fmt"
	"os"

	"github.com/urfave/cli/v2"

	"vmav.dev/vmav/internal/ready"
	"vmav.dev/vmav/internal/scan"
	"vmav.dev/vmav/internal/worker/broker"
	"vmav.dev/vmav/internal/worker/inside"
)

func noSandboxFlag() cli.Flag {
	return &cli.BoolFlag{Name: "no-sandbox", Usage: "parse guest memory in this process, with all its rights; for debugging"}
}

// newScanner returns the scanner of a command. It scans each guest in a sandboxed worker,
// unless the command's flag says otherwise.
func newScanner(c *cli.Context, e *env, m scan.Means) scan.Scanner {
	if c.Bool("no-sandbox") {
		return scan.InProcess{Means: m}
	}
	return (&broker.Runner{Notes: e}).Scanner(m)
}

// workerMain runs this program as a worker and returns the exit status.
func workerMain() int {
	status, err := inside.Main(os.Args)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	return status
}

// checkWorker starts a worker and says what confines it.
func checkWorker(ctx context.Context) ready.Answer {
	r := ready.Answer{What: "worker"}
	s, err := new(broker.Runner).Try(ctx)
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
