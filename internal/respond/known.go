package respond

import (
	"sync"
	"time"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
)

// Known remembers which findings in one guest were recorded, for a service that scans the
// guest again and again: what it knows and has nothing to do about is recorded once and told
// of once. A nil Known knows nothing. It is safe for concurrent use.
type Known struct {
	mu   sync.Mutex
	seen map[knownKey]bool
}

// knownKey is one finding in one process; pids are used again.
type knownKey struct {
	pid             uint64
	created         time.Time
	base            finding.Address
	signature, kind string
}

// maxKnown bounds what is remembered of one guest.
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
		n.seen = make(map[knownKey]bool) // told twice rather than never
	}
	n.seen[k] = true
}
