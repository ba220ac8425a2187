package scan

import (
	"context"

	"vmav.dev/vmav/internal/clam"
)

// Memory carries results from scan to scan. Cache is one.
type Memory interface {
	// For is the memory as one scan with an engine uses it.
	For(ctx context.Context, engine Engine) Results
}

// Results is what one scan remembers by. It is safe for concurrent use.
type Results interface {
	// Result returns what the engine says of the content with this SHA-256: what is
	// remembered, and else what do finds out. fresh says that do was called just now, and
	// not for another caller. An error is not remembered.
	Result(ctx context.Context, sum [32]byte, do func() (clam.Result, error)) (res clam.Result, fresh bool, err error)
	// Clean tells whether the engine, with the signatures that it has, is remembered to
	// have looked at all of a content and found nothing.
	Clean(sum [32]byte) bool
	// Secret is the key under which the pages of this scan's guest are digested, which no
	// guest knows, and of which digests hold beyond the scan only with the same program.
	Secret() [32]byte
	// Recall returns what was remembered under a key that was made with the secret.
	Recall(key [32]byte) (record []byte, ok bool)
	// Remember keeps a record for later scans. It may be dropped at any time.
	Remember(key [32]byte, record []byte)
}

// Identified is an Engine that knows what its answers rest on.
type Identified interface {
	// Identity names the engine, its options and signatures as they are loaded now: with
	// the same identity the same content has the same result. It is "" where that cannot
	// be told, and then no result outlives the scan.
	Identity(ctx context.Context) string
}

// Store keeps what a Cache remembers beyond one run, for several processes at once. What
// it returns is what was put, or nothing.
type Store interface {
	Get(key [32]byte) (value []byte, ok bool)
	Put(key [32]byte, value []byte)
	// Flush makes what was put outlast the process, however it ends.
	Flush()
	// Secret is 32 bytes of the store's own that no guest knows.
	Secret() [32]byte
}
