package source

import (
	"context"
	"errors"
	"testing"
)

// ram is memory whose every page holds its own number.
type ram struct {
	pages uint64
	reads int
}

func (r *ram) ReadPhys(p []byte, addr uint64) error {
	r.reads++
	if addr+uint64(len(p)) > r.pages*PageSize {
		return &AccessError{Addr: addr, Size: len(p), Err: ErrHole}
	}
	for i := range p {
		p[i] = byte((addr + uint64(i)) / PageSize)
	}
	return nil
}
func (r *ram) Ranges() []Range                                { return []Range{{0, r.pages * PageSize}} }
func (r *ram) Registers(context.Context) ([]Registers, error) { return nil, ErrNoRegisters }
func (r *ram) Info() Info                                     { return Info{} }
func (r *ram) Close() error                                   { return nil }

func TestCacheReadsEachPageOnceUntilItIsFull(t *testing.T) {
	src := &ram{pages: 64}
	c := NewCache(src, 4)
	var b [2]byte
	for range 10 {
		for pfn := uint64(0); pfn < 4; pfn++ {
			if err := c.ReadPhys(b[:], pfn*PageSize+17); err != nil || b[0] != byte(pfn) {
				t.Fatalf("page %d: %v, %v", pfn, b, err)
			}
		}
	}
	if src.reads != 4 {
		t.Errorf("%d reads of four pages, want 4", src.reads)
	}
	for pfn := uint64(0); pfn < 64; pfn++ { // far more pages than slots
		if err := c.ReadPhys(b[:1], pfn*PageSize); err != nil || b[0] != byte(pfn) {
			t.Fatalf("page %d: %v, %v", pfn, b, err)
		}
	}
	if err := c.ReadPhys(b[:], 9*PageSize-1); err != nil || b != [2]byte{8, 9} {
		t.Errorf("across pages: %v, %v", b, err)
	}
	if err := c.ReadPhys(b[:], 64*PageSize); !errors.Is(err, ErrHole) {
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
		pages uint64
	}{{"hit", 8}, {"miss", 1 << 12}} {
		b.Run(bm.name, func(b *testing.B) {
			c := NewCache(&ram{pages: bm.pages}, 16)
			buf := make([]byte, 8)
			b.ReportAllocs()
			for i := range b.N {
				if err := c.ReadPhys(buf, uint64(i)%bm.pages*PageSize); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
