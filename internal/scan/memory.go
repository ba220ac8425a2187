package scan

import (
	"context"

	"vmav.dev/vmav/internal/clam/answer"
)

// Memory carries results from scan to scan. Cache implements it.
type Memory interface {
	// For returns the memory for one scan with an engine.
	For(ctx context.Context, engine Engine) Results
}

// Results is the memory of one scan. It is safe for concurrent use.
type Results interface {
	// Result returns what the engine says of the content with the given SHA-256: what is
	// remembered, or else what do returns. fresh says that this call has called do. An
	// error is not remembered.
	Result(ctx context.Context, sum [32]byte, do func() (answer.Result, error)) (res answer.Result, fresh bool, err error)
	// Clean reports whether the engine, with its present signatures, is known to have read
	// all of a content and found nothing.
	Clean(sum [32]byte) bool
	// Secret returns the key that the pages of this scan's guest are digested with. No guest
	// knows it. Digests are good for later scans only with the same program.
	Secret() [32]byte
	// Recall returns what was remembered under a key. The key was made with the secret.
	Recall(key [32]byte) (record []byte, ok bool)
	// Remember keeps a record for later scans. It may be dropped at any time.
	Remember(key [32]byte, record []byte)
}

// Identified is an Engine that can identify what its answers depend on.
type Identified interface {
	// Identity identifies the engine, its options and the signatures that it has loaded
	// now. With the same identity, the same content has the same result. It is "" if that
	// cannot be told; then no result outlives the scan.
	Identity(ctx context.Context) string
}

// Store keeps what a Cache remembers beyond one run, for several processes at once. It
// returns exactly what was put, or nothing.
type Store interface {
	// Get returns the value of a key.
	Get(key [32]byte) (value []byte, ok bool)
	// Put keeps a value under a key. It may be dropped at any time.
	Put(key [32]byte, value []byte)
	// Flush makes what was put survive the process, however it ends.
	Flush()
	// Secret returns 32 bytes that the store has made and that no guest knows.
	Secret() [32]byte
}
