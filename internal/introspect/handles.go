package introspect

import (
	"context"
	"encoding/binary"
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
	err = g.handlePages(ctx, code, func(page []byte) {
		for off := 16; off+16 <= len(page); off += 16 {
			if at := g.handleObject(binary.LittleEndian.Uint64(page[off:])); at != 0 {
				out = append(out, at)
			}
		}
	})
	return out, err
}

// handleObject is the address in the first word of a handle table entry, 0 for a
// free one. Since Windows 8 the entry holds bits 4 to 47 of it above its flags and
// count; before, the address itself with flags in its low bits.
func (g *Guest) handleObject(word uint64) uint64 {
	if g.off.HandleBits.BitCount != 0 {
		if word == 0 || g.off.HandleBits.BitOffset < 4 {
			return 0
		}
		at := uint64(int64(word)>>(g.off.HandleBits.BitOffset-4)) &^ 0xf
		if at>>47 != 1<<17-1 {
			return 0
		}
		return at
	}
	at := word &^ 7
	if at>>47 != 1<<17-1 {
		return 0
	}
	return at
}

// handlePages calls f with each page of entries of the table with a TableCode: its
// low two bits say how many levels of pointers lie above the entries.
func (g *Guest) handlePages(ctx context.Context, code uint64, f func(page []byte)) error {
	if g.off.HandleEntrySize != 16 || g.off.HandleTableCode == winstruct.Missing {
		return errors.New("handle table entries of this build have an unknown form")
	}
	seen := make(map[uint64]struct{})
	page := make([][pageSize]byte, 3)
	var walk func(at uint64, level int) error
	walk = func(at uint64, level int) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, again := seen[at]; again || len(seen) >= maxHandlePages {
			return fmt.Errorf("the table does not end: after %d pages it is at %#x", len(seen), at)
		}
		seen[at] = struct{}{}
		p := page[level][:]
		if err := g.as.Read(p, at); err != nil {
			return fmt.Errorf("read handle table page at %#x: %w", at, err)
		}
		if level == 0 {
			f(p)
			return nil
		}
		for off := 0; off < pageSize; off += 8 {
			next := binary.LittleEndian.Uint64(p[off:])
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
