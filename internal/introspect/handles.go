package introspect

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/winstruct"
)

// maxHandlePages bounds the pages of entries that are read of one handle table: enough
// for a million processes and threads.
const maxHandlePages = 1 << 12

// handleTable is a _HANDLE_TABLE: a process's handles, or the kernel's table of process and
// thread ids. An entry is two words long. A table with more than one page of entries has a
// page of pointers to them, and one with more than a page of pointers has another page of
// pointers above these. The index of an entry is its handle divided by four.
type handleTable struct {
	as     *AddressSpace
	top    uint64 // address of the topmost page
	levels uint64 // number of levels of pointers above the entries
}

// handleTableAt reads the header of the handle table at an address. The two low bits of
// TableCode give the number of levels.
func (g *Guest) handleTableAt(at uint64) (handleTable, error) {
	if g.off.HandleEntrySize != 2*g.as.ptr || g.off.HandleTableCode == winstruct.Missing {
		return handleTable{}, errors.New("handle table entries of this build have an unknown form")
	}
	code, err := g.as.word(at + uint64(g.off.HandleTableCode))
	if err != nil {
		return handleTable{}, fmt.Errorf("read the handle table at %#x: %w", at, err)
	}
	t := handleTable{as: g.as, top: code &^ 3, levels: code & 3}
	if t.top == 0 || t.levels > 2 {
		return handleTable{}, fmt.Errorf("the handle table at %#x has %d levels from %#x on", at, t.levels+1, t.top)
	}
	return t, nil
}

// entrySize is the size of an entry in bytes.
func (t handleTable) entrySize() uint64 { return 2 * uint64(t.as.ptr) }

// pointers is the number of pointers in a page.
func (t handleTable) pointers() uint64 { return pageSize / uint64(t.as.ptr) }

// page returns the address of the n-th page of entries, or 0 if the table has none. In that
// case level is the level whose pointer is missing; t.levels is that of the top page.
func (t handleTable) page(n uint64) (at, level uint64, err error) {
	at = t.top
	for level = t.levels; level > 0; level-- {
		below := uint64(1) // pages of entries that one pointer leads to
		for range level - 1 {
			below *= t.pointers()
		}
		slot := n / below
		if slot >= t.pointers() {
			return 0, level, nil
		}
		pointer := at + slot*uint64(t.as.ptr)
		if at, err = t.as.word(pointer); err != nil {
			return 0, level, fmt.Errorf("read handle table pointer at %#x: %w", pointer, err)
		}
		if at == 0 {
			return 0, level, nil
		}
		n %= below
	}
	if n > 0 {
		return 0, 0, nil
	}
	return at, 0, nil
}

// entry returns the address of a handle's entry, or 0 if the handle is beyond the table.
func (t handleTable) entry(handle uint64) (uint64, error) {
	perPage := pageSize / t.entrySize()
	index := handle / 4
	page, _, err := t.page(index / perPage)
	if err != nil || page == 0 {
		return 0, err
	}
	return page + index%perPage*t.entrySize(), nil
}

// each calls visit with the first word of every entry.
func (t handleTable) each(ctx context.Context, visit func(word uint64)) error {
	seen := make(map[uint64]struct{})
	page := t.as.newRecord(pageSize)
	for n := uint64(0); ; n++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		at, level, err := t.page(n)
		if err != nil {
			return err
		}
		if at == 0 {
			if level == t.levels {
				return nil
			}
			n |= t.pointers() - 1 // go on with the next page of pointers
			continue
		}
		if _, again := seen[at]; again || len(seen) >= maxHandlePages {
			return fmt.Errorf("the table does not end: after %d pages it is at %#x", len(seen), at)
		}
		seen[at] = struct{}{}
		if err := t.as.Read(page.b, at); err != nil {
			return fmt.Errorf("read handle table page at %#x: %w", at, err)
		}
		// The first entry of each page belongs to the table itself.
		for off := uint32(t.entrySize()); off < pageSize; off += uint32(t.entrySize()) {
			visit(page.ptr(off))
		}
	}
}

// cidTable returns the objects that the table of process and thread ids refers to.
func (g *Guest) cidTable(ctx context.Context) ([]uint64, error) {
	if g.off.Sym.CidTable == 0 {
		return nil, errors.New("where it lies could not be proven: hidden processes are not found")
	}
	at, err := g.as.word(g.kernel.Base + g.off.Sym.CidTable)
	if err != nil {
		return nil, fmt.Errorf("read PspCidTable: %w", err)
	}
	table, err := g.handleTableAt(at)
	if err != nil {
		return nil, err
	}
	var out []uint64
	err = table.each(ctx, func(word uint64) {
		if object := g.entryObject(word); object != 0 {
			out = append(out, object)
		}
	})
	return out, err
}

// entryObject decodes the first word of a handle table entry: the address of an object, or
// 0 if the entry is free. In a process's table it is the address of the object's header.
// Since Windows 8 the word holds the address without its alignment bits (bits 4 to 47, on
// x86 3 to 31) above flags and a count. Before, it held the address with flags in the low
// bits.
func (g *Guest) entryObject(word uint64) uint64 {
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

// HandleObject returns the address of the body of the object that a process's handle refers
// to. still is the condition that the handle continues to refer to it.
func (g *Guest) HandleObject(p *Process, handle uint64) (object uint64, still source.Guard, err error) {
	object, still, err = g.handleObject(p.EPROCESS, handle)
	if err != nil {
		err = fmt.Errorf("handle %#x of process %d (%s): %w", handle, p.PID, p.Name, err)
	}
	return object, still, err
}

func (g *Guest) handleObject(eprocess, handle uint64) (uint64, source.Guard, error) {
	none := source.Guard{}
	if g.off.ObjectBody == winstruct.Missing {
		return 0, none, errors.New("the object headers of this build have an unknown form")
	}
	if handle == 0 || handle%4 != 0 || handle >= 1<<26 {
		return 0, none, errors.New("it is no handle")
	}
	at, err := g.as.word(eprocess + uint64(g.off.Process.ObjectTable))
	if err != nil {
		return 0, none, err
	}
	table, err := g.handleTableAt(at)
	if err != nil {
		return 0, none, err
	}
	entry, err := table.entry(handle)
	if err != nil {
		return 0, none, err
	}
	if entry == 0 {
		return 0, none, errors.New("it lies beyond its table")
	}
	m, err := g.as.Mapping(entry)
	if err != nil {
		return 0, none, err
	}
	var word [8]byte
	width := uint64(g.as.ptr)
	if err := g.src.ReadPhys(word[:width], m.GPA); err != nil {
		return 0, none, err
	}
	v := binary.LittleEndian.Uint64(word[:])
	header := g.entryObject(v)
	if header == 0 {
		return 0, none, errors.New("it is free")
	}
	mask := ^uint64(7)
	if f := g.off.HandleBits; f.BitCount != 0 {
		mask = (1<<f.BitCount - 1) << f.BitOffset
	}
	return header + uint64(g.off.ObjectBody), guard(m.GPA, width, mask, v), nil
}
