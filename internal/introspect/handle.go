package introspect

import (
	"encoding/binary"
	"errors"
	"fmt"

	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/winstruct"
)

// HandleObject is the object that a handle of a process refers to, with the condition
// that it still does. The address is that of the object's body.
func (g *Guest) HandleObject(p *Process, handle uint64) (object uint64, still source.Guard, err error) {
	object, still, err = g.handleEntry(p.EPROCESS, handle)
	if err != nil {
		err = fmt.Errorf("handle %#x of process %d (%s): %w", handle, p.PID, p.Name, err)
	}
	return object, still, err
}

func (g *Guest) handleEntry(eprocess, handle uint64) (uint64, source.Guard, error) {
	none := source.Guard{}
	if g.off.HandleEntrySize != 2*g.as.ptr || g.off.ObjectBody == winstruct.Missing {
		return 0, none, errors.New("the handle table of this build has an unknown form")
	}
	if handle == 0 || handle%4 != 0 || handle >= 1<<26 {
		return 0, none, errors.New("it is no handle")
	}
	table, err := g.as.word(eprocess + uint64(g.off.Process.ObjectTable))
	if err != nil {
		return 0, none, err
	}
	code, err := g.as.word(table + uint64(g.off.HandleTableCode))
	if err != nil {
		return 0, none, err
	}
	// Entries fill a page, pointers to such pages the one above, and so on.
	width := uint64(g.as.ptr)
	perPage, pointers := pageSize/(2*width), pageSize/width
	index := handle / 4
	at, level := code&^3, code&3
	if level > 2 {
		return 0, none, fmt.Errorf("a table of %d levels", level+1)
	}
	for unit := perPage; level > 0; level-- {
		below := unit
		for range level - 1 {
			below *= pointers
		}
		slot := index / below
		if slot >= pointers {
			return 0, none, errors.New("it lies beyond its table")
		}
		if at, err = g.as.word(at + width*slot); err != nil {
			return 0, none, err
		}
		index %= below
	}
	if index >= perPage || at == 0 {
		return 0, none, errors.New("it lies beyond its table")
	}
	m, err := g.as.Mapping(at + 2*width*index)
	if err != nil {
		return 0, none, err
	}
	var word [8]byte
	if err := g.src.ReadPhys(word[:width], m.GPA); err != nil {
		return 0, none, err
	}
	v := binary.LittleEndian.Uint64(word[:])
	header := g.handleObject(v)
	if header == 0 {
		return 0, none, errors.New("it is free")
	}
	mask := ^uint64(7)
	if f := g.off.HandleBits; f.BitCount != 0 {
		mask = (1<<f.BitCount - 1) << f.BitOffset
	}
	return header + uint64(g.off.ObjectBody), guard(m.GPA, width, mask, v), nil
}
