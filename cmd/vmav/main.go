// Command vmav is an agentless antivirus for Windows guests on KVM. It reads the memory of
// running libvirt domains from the host, rebuilds the files of the programs that are mapped
// in them, and lets ClamAV scan these files.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"vmav.dev/vmav/internal/worker/inside"
)

// version is set by the linker.
var version = "unknown"

func main() {
	if inside.IsWorker(os.Args) { // before the program does anything else
		os.Exit(workerMain())
	}
	if len(os.Args) > 2 && os.Args[1] == "hook" && os.Args[2] == "run" {
		runHook(os.Args[3:])
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	code := run(ctx, os.Args, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run executes one command line and returns its exit status. A second interrupt ends the
// process at once, because main gives the signals back after the first.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	app := newApp(stdout, stderr)
	err := app.RunContext(ctx, permute(app, args))
	code := exitStatus(ctx, err)
	if text := message(err); text != "" {
		fmt.Fprintln(stderr, "vmav: "+text)
	}
	return code
}
