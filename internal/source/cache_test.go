package source_test

import (
	"errors"
	"testing"

	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/source/sourcetest"
)

// counted is memory whose every page holds its own number, and how often it was read.
type counted struct {
	sourcetest.Bytes
	reads int
}

func (c *counted) ReadPhys(p []byte, addr uint64) error {
	c.reads++
	return c.Bytes.ReadPhys(p, addr)
}

func numbered(pages int) (*sourcetest.Guest, *counted) {
	c := &counted{Bytes: make(sourcetest.Bytes, pages*source.PageSize)}
	for i := range c.Bytes {
		c.Bytes[i] = byte(i / source.PageSize)
	}
	return sourcetest.New(c, uint64(len(c.Bytes))), c
}

func TestCacheReadsEachPageOnceUntilItIsFull(t *testing.T) {
	guest, src := numbered(64)
	c := source.NewCache(guest, 4)
	var b [2]byte
	for range 10 {
		for pfn := uint64(0); pfn < 4; pfn++ {
			if err := c.ReadPhys(b[:], pfn*source.PageSize+17); err != nil || b[0] != byte(pfn) {
				t.Fatalf("page %d: %v, %v", pfn, b, err)
			}
		}
	}
	if src.reads != 4 {
		t.Errorf("%d reads of four pages, want 4", src.reads)
	}
	for pfn := uint64(0); pfn < 64; pfn++ { // far more pages than slots
		if err := c.ReadPhys(b[:1], pfn*source.PageSize); err != nil || b[0] != byte(pfn) {
			t.Fatalf("page %d: %v, %v", pfn, b, err)
		}
	}
	if err := c.ReadPhys(b[:], 9*source.PageSize-1); err != nil || b != [2]byte{8, 9} {
		t.Errorf("across pages: %v, %v", b, err)
	}
	if err := c.ReadPhys(b[:], 64*source.PageSize); !errors.Is(err, source.ErrHole) {
		t.Errorf("beyond the end: %v", err)
	}
	before := src.reads
	c.Invalidate()
	if err := c.ReadPhys(b[:], 0); err != nil || src.reads != before+1 {
		t.Errorf("after Invalidate: %d more reads, %v", src.reads-before, err)
	}
}

func BenchmarkCache(b *testing.B) {
	for _, bm := range []struct {
		name  string
		pages int
	}{{"hit", 8}, {"miss", 1 << 12}} {
		b.Run(bm.name, func(b *testing.B) {
			guest, _ := numbered(bm.pages)
			c := source.NewCache(guest, 16)
			buf := make([]byte, 8)
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				if err := c.ReadPhys(buf, uint64(i%bm.pages)*source.PageSize); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
