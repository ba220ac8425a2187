package introspect

import (
	"errors"

	"vmav.dev/vmav/internal/source"
)

// PageInGuards are the conditions under which a read of va in a process has its guest
// read a page of the section in that is mapped there, and does nothing else: the process
// is what it was, and its entry for the page says nothing but that the section has it. in
// says that the page is present, and then there is nothing to do. The error wraps
// ErrNotPresent where the entry says something else: the process may have changed its
// rights to the page, or have a copy of its own in a page file.
func (g *Guest) PageInGuards(id Identity, va uint64) (guards []source.Guard, in bool, err error) {
	m, err := g.space(id.DTB).Mapping(va)
	if err == nil {
		return nil, true, nil
	}
	if !errors.Is(err, ErrNotPresent) || m.Entry == 0 || !sectionAlone(m.PTE) {
		return nil, false, err
	}
	of, err := g.Guards(id)
	if err != nil {
		return nil, false, err
	}
	// That its DTB is loaded is a condition of every action; the page has its place.
	return []source.Guard{of.Created, of.PID, of.Alive, {GPA: m.Entry, Mask: ^uint64(0), Value: m.PTE}}, false, nil
}

// sectionAlone tells whether an entry that is not valid leaves all to the section: zero
// leaves it to the range's descriptor, and so does a table that is not there; else it
// leads to the section's prototype entry. One that says "see the VAD" in the place of that
// address has rights of its own.
func sectionAlone(pte uint64) bool {
	if pte == 0 {
		return true
	}
	address := pte >> protoShift
	return pte&ptePrototype != 0 && pte&pteTransition == 0 && uint32(address) != 0xffffffff && address>>16 != 0xffffffff
}
