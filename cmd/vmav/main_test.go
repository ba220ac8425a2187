package main

import (
	"fmt"
	"os"
	"testing"

	"vmav.dev/vmav/internal/worker/inside"
)

// TestMain is a worker where it is started as one: commands under test start their own
// program.
func TestMain(m *testing.M) {
	if inside.IsWorker(os.Args) {
		os.Exit(workerMain())
	}
	// The host's history is not the tests'.
	dir, err := os.MkdirTemp("", "vmav-state-")
	if err == nil {
		err = os.Setenv("VMAV_STATE_DIRECTORY", dir)
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}
