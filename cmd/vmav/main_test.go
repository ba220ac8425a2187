package main

import (
	"os"
	"testing"

	"vmav.dev/vmav/internal/worker"
)

// TestMain is a worker where it is started as one: commands under test start their own
// program.
func TestMain(m *testing.M) {
	if worker.Inside(os.Args) {
		os.Exit(workerMain())
	}
	os.Exit(m.Run())
}
