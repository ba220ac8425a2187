package introspect

import (
	"context"
	"errors"
	"fmt"

	"vmav.dev/vmav/internal/winstruct"
)

// maxHandlePages bounds the pages read from one handle table: enough for a million
// processes and threads.
const maxHandlePages = 1 << 12

// cidTable returns the objects that the table of process and thread ids refers to.
func (g *Guest) cidTable(ctx context.Context) ([]uint64, error) {
	if g.off.Sym.CidTable == 0 {
		return nil, errors.New("where it lies could not be proven: hidden processes are not found")
	}
	table, err := g.as.word(g.kernel.Base + g.off.Sym.CidTable)
	if err != nil {
		return nil, fmt.Errorf("read PspCidTable: %w", err)
	}
	code, err := g.as.word(table + uint64(g.off.HandleTableCode))
	if err != nil {
		return nil, fmt.Errorf("read the id table at %#x: %w", table, err)
	}
	var out []uint64
	err = g.handlePages(ctx, code, func(page record) {
		for off := 2 * page.word; off+2*page.word <= pageSize; off += 2 * page.word {
			if at := g.handleObject(page.ptr(off)); at != 0 {
				out = append(out, at)
			}
		}
	})
	return out, err
}

// handleObject is the address in the first word of a handle table entry, 0 for a
// free one. Since Windows 8 the entry holds its bits from the alignment of objects on (4
// to 47, on x86 3 to 31) above its flags and count; before, the address itself with flags
// in its low bits.
func (g *Guest) handleObject(word uint64) uint64 {
	f := g.as.f
	at := word &^ 7
	if bits := g.off.HandleBits; bits.BitCount != 0 {
		low := uint8(4)
		if !f.wide() {
			low = 3
		}
		if bits.BitOffset < low {
			return 0
		}
		at = f.fastRef(uint64(int64(word) >> (bits.BitOffset - low)))
	}
	if !f.kernelImage(at) {
		return 0
	}
	return at
}

// handlePages calls f with each page of entries of the table with a TableCode: its
// low two bits say how many levels of pointers lie above the entries.
func (g *Guest) handlePages(ctx context.Context, code uint64, f func(page record)) error {
	if g.off.HandleEntrySize != 2*g.as.ptr || g.off.HandleTableCode == winstruct.Missing {
		return errors.New("handle table entries of this build have an unknown form")
	}
	seen := make(map[uint64]struct{})
	var pages [3]record
	for i := range pages {
		pages[i] = g.as.newRecord(pageSize)
	}
	var walk func(at uint64, level int) error
	walk = func(at uint64, level int) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, again := seen[at]; again || len(seen) >= maxHandlePages {
			return fmt.Errorf("the table does not end: after %d pages it is at %#x", len(seen), at)
		}
		seen[at] = struct{}{}
		p := pages[level]
		if err := g.as.Read(p.b, at); err != nil {
			return fmt.Errorf("read handle table page at %#x: %w", at, err)
		}
		if level == 0 {
			f(p)
			return nil
		}
		for off := uint32(0); off < pageSize; off += p.word {
			next := p.ptr(off)
			if next == 0 {
				return nil
			}
			if err := walk(next, level-1); err != nil {
				return err
			}
		}
		return nil
	}
	level := int(code & 3)
	if level > 2 {
		return fmt.Errorf("a table of %d levels", level+1)
	}
	return walk(code&^3, level)
}
