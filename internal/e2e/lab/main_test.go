package lab

import (
	"fmt"
	"os"
	"testing"

	"vmav.dev/vmav/internal/e2e/harness"
)

// Nothing of this package can run outside the lab, and nothing of it may be skipped there.
func TestMain(m *testing.M) {
	if !harness.InLab() {
		fmt.Println("these tests run in the nested lab: make test-kvm")
		os.Exit(0)
	}
	remove, err := harness.OwnState()
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	code := m.Run()
	harness.EndShared()
	remove()
	os.Exit(code)
}
