package live

import (
	"os"
	"testing"

	"vmav.dev/vmav/internal/e2e/harness"
)

// The service outlives whatever happens to its host; what that is, and for how long, is
// Chaos's to say.
func TestWatchSurvivesChaos(t *testing.T) {
	if os.Getenv("VMAV_CHAOS") == "" {
		t.Skip("VMAV_CHAOS is not set: make test-chaos does")
	}
	harness.Chaos(t)
}
