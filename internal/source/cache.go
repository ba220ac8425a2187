package source

import (
	"context"
	"sync"
	"sync/atomic"
)

// Cache is a Source that keeps the pages it has read, for readers that return to the same
// pages in small pieces. It is bounded. A cached page is a copy made at some moment since
// the last Invalidate; with a running guest the owner decides how old that may be. Reads of
// a page or more bypass the cache. It is safe for concurrent use and does not allocate once
// it is full.
type Cache struct {
	Source
	mu    sync.Mutex
	index map[uint64]int // frame number → slot
	slots []slot
	hand  int

	hits, misses atomic.Uint64
}

type slot struct {
	pfn  uint64
	used bool // since the hand passed
	full bool
	page *[PageSize]byte // nil until it is used
}

// NewCache returns a source that reads src through a cache of that many pages, at least
// one. Closing it closes src.
func NewCache(src Source, pages int) *Cache {
	pages = max(pages, 1)
	return &Cache{Source: src, index: make(map[uint64]int), slots: make([]slot, pages)}
}

// Uncached returns the source behind a Cache, or src itself if it is none. It serves to
// read the present content of memory.
func Uncached(src Source) Source {
	if c, ok := src.(*Cache); ok {
		return c.Source
	}
	return src
}

// ReadPhys implements Source.
func (c *Cache) ReadPhys(p []byte, addr uint64) error {
	if len(p) >= PageSize || len(p) == 0 {
		return c.Source.ReadPhys(p, addr)
	}
	for len(p) > 0 {
		n, err := c.read(p, addr)
		if err != nil {
			return err
		}
		p, addr = p[n:], addr+uint64(n)
	}
	return nil
}

// read copies the part of [addr, addr+len(p)) that is on addr's page, and returns its size.
func (c *Cache) read(p []byte, addr uint64) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	pfn := addr / PageSize
	i, ok := c.index[pfn]
	if ok {
		c.hits.Add(1)
	} else {
		c.misses.Add(1)
		i = c.victim()
		s := &c.slots[i]
		if s.full {
			delete(c.index, s.pfn)
			s.full = false
		}
		if s.page == nil {
			s.page = new([PageSize]byte)
		}
		if err := c.Source.ReadPhys(s.page[:], pfn*PageSize); err != nil {
			return 0, err
		}
		s.pfn, s.full = pfn, true
		c.index[pfn] = i
	}
	c.slots[i].used = true
	return copy(p, c.slots[i].page[addr%PageSize:]), nil
}

// victim picks a slot by the clock algorithm: the first one that was not used since the
// hand last passed it.
func (c *Cache) victim() int {
	for {
		i := c.hand
		c.hand = (c.hand + 1) % len(c.slots)
		if !c.slots[i].used {
			return i
		}
		c.slots[i].used = false
	}
}

// Invalidate drops all pages.
func (c *Cache) Invalidate() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.index)
	for i := range c.slots {
		c.slots[i].full, c.slots[i].used = false, false
	}
}

// Counts returns how many look-ups found their page in the cache, and how many did not.
func (c *Cache) Counts() (hits, misses uint64) { return c.hits.Load(), c.misses.Load() }

// ReadPhysBatch implements BatchReader. Batches read whole pages and bypass the cache.
func (c *Cache) ReadPhysBatch(reqs []Request) error { return ReadBatch(c.Source, reqs) }

// Registers implements Source.
func (c *Cache) Registers(ctx context.Context) ([]Registers, error) { return c.Source.Registers(ctx) }
