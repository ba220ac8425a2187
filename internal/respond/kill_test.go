package respond

import (
	"path"
	"testing"
)

// The directory of a lock is the runtime's, whatever a domain is called.
func TestKillLocksStayInTheirDirectory(t *testing.T) {
	for _, uuid := range []string{"5d9f1c6e-0000-4000-8000-0123456789ab", "../../etc/x", "..", "/"} {
		if got := killLockPath("/run/vmav", uuid); path.Dir(got) != "/run/vmav" || path.Clean(got) != got {
			t.Errorf("%q: %s", uuid, got)
		}
	}
}
