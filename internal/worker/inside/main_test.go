package inside

import (
	"context"
	"fmt"
	"os"
	"slices"
	"testing"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/scan"
	"vmav.dev/vmav/internal/scan/scantest"
	"vmav.dev/vmav/internal/worker/broker"
	"vmav.dev/vmav/internal/worker/wire"
)

// TestMain is a worker where it is started as one: its own program is what a Runner
// starts. With a further argument it is code in a worker's place (strangers).
func TestMain(m *testing.M) {
	if IsWorker(os.Args) {
		status, err := asWorker(os.Args)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(status)
	}
	os.Exit(m.Run())
}

func asWorker(args []string) (int, error) {
	if len(args) <= 6 {
		return Main(args)
	}
	ls, _, abi, err := enter(args)
	if err != nil {
		return wire.ExitNoSandbox, err
	}
	do := strangers[args[6]]
	if do == nil {
		return wire.ExitFailed, fmt.Errorf("no stranger %q", args[6])
	}
	if !slices.Contains(args, "another protocol") { // which is how it begins
		w := &worker{lanes: ls, abi: abi}
		if _, err := w.next(); err != nil {
			return wire.ExitFailed, err
		}
	}
	if err := do(ls, args[7:]); err != nil {
		return wire.ExitFailed, err
	}
	return 0, nil
}

// look scans a guest in a worker of a runner.
func look(r *broker.Runner, t scan.Target, req scan.Request) (finding.Scan, error) {
	return scantest.Scan(context.Background(), r.Scanner(scantest.Means(scantest.Finder{})), t, req)
}
