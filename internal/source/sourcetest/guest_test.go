package sourcetest

import (
	"context"
	"errors"
	"testing"

	"vmav.dev/vmav/internal/source"
)

func TestGuestReadsWhatWasWritten(t *testing.T) {
	mem := make(Bytes, 3*source.PageSize)
	for i := range mem {
		mem[i] = byte(i / source.PageSize)
	}
	g := New(mem, uint64(len(mem)))
	p := make([]byte, len(mem))
	if err := g.ReadPhys(p, 0); err != nil || p[0] != 0 || p[len(p)-1] != 2 {
		t.Fatalf("before a write: %d, %d, %v", p[0], p[len(p)-1], err)
	}
	const at = 2*source.PageSize - 4 // across two pages
	g.Put(at, 0x1122334455667788, 8)
	if err := g.ReadPhys(p, 0); err != nil || p[at-1] != 1 || p[at] != 0x88 || p[at+7] != 0x11 || p[at+8] != 2 {
		t.Errorf("after a write: % x, %v", p[at-1:at+9], err)
	}
	if v := g.Word(at); v != 0x1122334455667788 || mem[at] != 1 {
		t.Errorf("word %#x; the memory behind has %d", v, mem[at])
	}
	if err := g.ReadPhys(p[:8], uint64(len(mem))-4); !errors.Is(err, source.ErrHole) {
		t.Errorf("beyond the end: %v", err)
	}
	if n := testing.AllocsPerRun(50, func() { _ = g.ReadPhys(p, 0) }); n != 0 {
		t.Errorf("%v allocations a read", n)
	}
}

func TestGuestOfNothing(t *testing.T) {
	g := New(nil, 0)
	g.Put(0x5008, 1, 4)
	if v := g.Word(0x5008); v != 1 || len(g.Ranges()) != 0 {
		t.Errorf("word %#x, ranges %v", v, g.Ranges())
	}
	if err := g.ReadPhys(make([]byte, 16), 0x5ff8); !errors.Is(err, source.ErrHole) {
		t.Errorf("into a hole: %v", err)
	}
}

func TestGuestEnds(t *testing.T) {
	ctx := context.Background()
	g := New(make(Bytes, source.PageSize), source.PageSize)
	if _, err := g.Registers(ctx); !errors.Is(err, source.ErrNoRegisters) {
		t.Errorf("registers that it has none of: %v", err)
	}
	over := New(g, source.PageSize)
	g.End()
	if err := over.ReadPhys(make([]byte, 1), 0); !errors.Is(err, source.ErrGone) {
		t.Errorf("through another source: %v", err)
	}
	if _, err := g.Registers(ctx); !errors.Is(err, source.ErrGone) {
		t.Errorf("registers after the end: %v", err)
	}
	over.Close()
	if err := over.ReadPhys(make([]byte, 1), 0); !errors.Is(err, source.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}
