package lab

import (
	"os"
	"testing"

	"vmav.dev/vmav/internal/e2e/harness"
)

// The same as in the live tests, with kills.
func TestWatchSurvivesChaos(t *testing.T) {
	if os.Getenv("VMAV_CHAOS") == "" {
		t.Skip("VMAV_CHAOS is not set: in the lab this takes make test-kvm-watch; the live tests do the same without kills")
	}
	harness.Chaos(t)
}
