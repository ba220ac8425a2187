package e2e

import (
	"fmt"
	"os"
	"testing"
)

// stateVariable names the directory of history and evidence.
const stateVariable = "VMAV_STATE_DIRECTORY"

// The host's history is not the tests'.
func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "vmav-e2e-state-")
	if err == nil {
		err = os.Setenv(stateVariable, dir)
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}
