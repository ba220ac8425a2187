package scan

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"sync"

	"vmav.dev/vmav/internal/clam/answer"
)

// Cache remembers what engines said of contents, so that a DLL in a hundred processes and
// domains is scanned once. It also remembers the results of images, so that an unchanged
// image is not rebuilt. It serves any number of scans and engines, also at the same time.
// docs/ARCHITECTURE.md explains why a guest cannot make it say "clean".
type Cache struct {
	store  Store // nil for none
	secret [32]byte

	mu         sync.Mutex
	young, old map[[32]byte][]byte // entries used since the generations last changed, and before
	size       int                 // of young, in bytes
	flights    map[[32]byte]*flight
}

// generation is how many bytes of entries one generation holds in memory. There are two
// generations.
const generation = 16 << 20

// flight is the scan of one content that is under way. Others that need its result wait for
// it.
type flight struct {
	done chan struct{}
	res  answer.Result
	err  error
}

// NewCache returns a cache that ends with this process.
func NewCache() *Cache {
	c := &Cache{young: make(map[[32]byte][]byte), flights: make(map[[32]byte]*flight)}
	mustRead(c.secret[:])
	return c
}

// mustRead fills p with random bytes.
func mustRead(p []byte) {
	if _, err := rand.Read(p); err != nil {
		panic(err) // the kernel has no random bytes
	}
}

// NewLastingCache returns a cache over a store, which the caller closes after the last use
// of the cache. program identifies the code that rebuilds images: the cache does not recall
// what another version of it has remembered of images.
func NewLastingCache(store Store, program string) *Cache {
	c := NewCache()
	c.store = store
	secret := store.Secret()
	c.secret = derive(secret[:], "program", program)
	return c
}

// Flush makes what is remembered survive the process, however it ends, if there is a store.
func (c *Cache) Flush() {
	if c.store != nil {
		c.store.Flush()
	}
}

func derive(secret []byte, kind, name string) (out [32]byte) {
	h := hmac.New(sha256.New, secret)
	h.Write([]byte(kind + "\x00" + name))
	h.Sum(out[:0])
	return out
}

// For implements Memory for scans in this process.
func (c *Cache) For(ctx context.Context, engine Engine) Results {
	return newResults(ctx, c, c.secret, engine)
}

// Scope returns the cache for scans of one guest that must not affect other guests. It
// shares what engines said of contents, which this process sees itself. It has its own
// records of images and its own secret.
func (c *Cache) Scope(name string) Memory { return scope{c, derive(c.secret[:], "scope", name)} }

type scope struct {
	cache  *Cache
	secret [32]byte
}

// For implements Memory.
func (s scope) For(ctx context.Context, engine Engine) Results {
	return newResults(ctx, s.cache, s.secret, engine)
}

// get returns an entry.
func (c *Cache) get(key [32]byte) ([]byte, bool) {
	c.mu.Lock()
	v, ok := c.young[key]
	if !ok {
		if v, ok = c.old[key]; ok {
			c.add(key, v)
		}
	}
	c.mu.Unlock()
	if ok || c.store == nil {
		return v, ok
	}
	if v, ok = c.store.Get(key); ok {
		c.mu.Lock()
		c.add(key, v)
		c.mu.Unlock()
	}
	return v, ok
}

// put stores an entry. If lasting is set, the entry survives the process.
func (c *Cache) put(key [32]byte, v []byte, lasting bool) {
	c.mu.Lock()
	c.add(key, v)
	c.mu.Unlock()
	if c.store != nil && lasting {
		c.store.Put(key, v)
	}
}

// add puts an entry into the young generation. The caller holds the lock.
func (c *Cache) add(key [32]byte, v []byte) {
	if c.size > generation {
		c.old, c.young, c.size = c.young, make(map[[32]byte][]byte), 0
	}
	c.young[key] = v
	c.size += len(v) + 100
}

// results is a Cache with one engine, for one scan. It implements Results.
type results struct {
	cache   *Cache
	secret  [32]byte
	engine  string
	lasting bool // what the engine says is good for later scans

	mu      sync.Mutex
	skipped map[[32]byte]answer.Result // results of partial scans, which are good for this scan only
}

func newResults(ctx context.Context, c *Cache, secret [32]byte, engine Engine) *results {
	r := &results{cache: c, secret: secret, skipped: make(map[[32]byte]answer.Result)}
	if e, ok := engine.(Identified); ok {
		r.engine = e.Identity(ctx)
	}
	if r.lasting = r.engine != ""; !r.lasting {
		var once [16]byte // what it says is of no use to another scan
		mustRead(once[:])
		r.engine = string(once[:])
	}
	return r
}

// key returns the key of an entry of a kind.
func (r *results) key(kind, owner string, of [32]byte) (key [32]byte) {
	h := sha256.New()
	h.Write([]byte(kind + "\x00" + owner + "\x00"))
	h.Write(of[:])
	h.Sum(key[:0])
	return key
}

// said returns what the engine is known to have said of a content that it read in full: the
// signature that it found, or "".
func (r *results) said(sum [32]byte) (signature string, ok bool) {
	v, ok := r.cache.get(r.key("said", r.engine, sum))
	return string(v), ok
}

// Clean implements Results.
func (r *results) Clean(sum [32]byte) bool {
	signature, ok := r.said(sum)
	return ok && signature == ""
}

// Secret implements Results.
func (r *results) Secret() [32]byte { return r.secret }

// Recall implements Results.
func (r *results) Recall(key [32]byte) ([]byte, bool) {
	return r.cache.get(r.key("image", string(r.secret[:]), key))
}

// maxRecord bounds a record, in bytes.
const maxRecord = 64 << 10

// Remember implements Results.
func (r *results) Remember(key [32]byte, record []byte) {
	if len(record) <= maxRecord {
		r.cache.put(r.key("image", string(r.secret[:]), key), record, true)
	}
}

// Result implements Results.
func (r *results) Result(ctx context.Context, sum [32]byte, do func() (answer.Result, error)) (res answer.Result, fresh bool, err error) {
	if signature, ok := r.said(sum); ok {
		return answer.Result{Signature: signature}, false, nil
	}
	r.mu.Lock()
	res, ok := r.skipped[sum]
	r.mu.Unlock()
	if ok {
		return res, false, nil
	}
	key := r.key("said", r.engine, sum)
	c := r.cache
	c.mu.Lock()
	f := c.flights[key]
	if f == nil {
		f = &flight{done: make(chan struct{})}
		c.flights[key] = f
		c.mu.Unlock()
		f.res, f.err = do()
		switch {
		case f.err != nil:
		case f.res.Skipped != "":
			r.mu.Lock()
			r.skipped[sum] = f.res
			r.mu.Unlock()
		default:
			c.put(key, []byte(f.res.Signature), r.lasting)
		}
		c.mu.Lock()
		delete(c.flights, key)
		c.mu.Unlock()
		close(f.done)
		return f.res, true, f.err
	}
	c.mu.Unlock()
	select {
	case <-f.done:
		return f.res, false, f.err
	case <-ctx.Done():
		return answer.Result{}, false, ctx.Err()
	}
}

// contentSum is the SHA-256 of a content, as records have it.
type contentSum [32]byte

// MarshalText implements encoding.TextMarshaler.
func (s contentSum) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, s[:]), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *contentSum) UnmarshalText(text []byte) error {
	if len(text) != 2*len(s) {
		return hex.ErrLength
	}
	_, err := hex.Decode(s[:], text)
	return err
}
