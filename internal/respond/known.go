package respond

import (
	"sync"
	"time"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
)

// Known remembers which findings in one guest were recorded. A service that scans the guest
// again and again uses it to record and report a finding only once if nothing is to be done
// about it. A nil Known knows nothing. It is safe for concurrent use.
type Known struct {
	mu   sync.Mutex
	seen map[knownKey]bool
}

// knownKey identifies one finding in one process. The creation time is part of it because
// PIDs are used again.
type knownKey struct {
	pid             uint64
	created         time.Time
	base            finding.Address
	signature, kind string
}

// maxKnown bounds how many findings are remembered of one guest.
const maxKnown = 1 << 16

func keyOf(p *introspect.Process, f *finding.Finding) knownKey {
	k := knownKey{pid: f.PID, base: f.Base, signature: f.Signature, kind: f.Kind}
	if p != nil {
		k.created = p.Created
	}
	return k
}

func (n *Known) has(k knownKey) bool {
	if n == nil {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.seen[k]
}

func (n *Known) add(k knownKey) {
	if n == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.seen == nil || len(n.seen) > maxKnown {
		n.seen = make(map[knownKey]bool) // better to report a finding twice than never
	}
	n.seen[k] = true
}
