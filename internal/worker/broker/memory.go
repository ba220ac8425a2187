package broker

import (
	"bytes"
	"errors"

	"vmav.dev/vmav/internal/scan"
	"vmav.dev/vmav/internal/worker/wire"
)

// A worker remembers through its broker. The secret and the records that the broker gives
// out and takes in belong to this guest alone (scan.Cache.Scope). So a worker that was taken
// over can deceive later scans of its own guest, but not of others. It cannot change what
// the engine said of a content.

// scoped returns a memory for one guest.
func scoped(m scan.Memory, t scan.Target) scan.Memory {
	if c, ok := m.(*scan.Cache); ok {
		return c.Scope(t.UUID + "/" + t.Name)
	}
	return m
}

// remembered answers questions about what is remembered.
func (v *laneServer) remembered(q wire.Frame) (wire.Frame, error) {
	if len(q.Args) != 32 {
		return wire.Frame{}, errors.New("a key of another size")
	}
	key := [32]byte(q.Args)
	yes := func(b bool) []byte {
		if b {
			return []byte{1}
		}
		return []byte{0}
	}
	switch q.Code {
	case wire.AskClean:
		return wire.Frame{Args: yes(v.results.Clean(key))}, nil
	case wire.AskRemember:
		v.results.Remember(key, bytes.Clone(v.window[:q.N]))
		return wire.Frame{}, nil
	}
	record, ok := v.results.Recall(key)
	if ok = ok && len(record) <= len(v.window); !ok {
		return wire.Frame{Args: yes(false)}, nil
	}
	return wire.Frame{N: copy(v.window, record), Args: yes(true)}, nil
}
