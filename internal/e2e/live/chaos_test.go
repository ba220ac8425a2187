package live

import (
	"testing"

	"vmav.dev/vmav/internal/e2e/harness"
)

// The service outlives whatever happens to its host; what that is, and for how long, is
// Chaos's to say.
func TestWatchSurvivesChaos(t *testing.T) {
	harness.Chaos(t)
}
