package introspect

import (
	"errors"

	"vmav.dev/vmav/internal/source"
)

// PageInGuards returns the conditions under which a read access to va by a process makes
// the guest read in a page of the section that is mapped there, and has no other effect:
// the process is still the same, and its page table entry leaves everything to the section.
//
// If the page is present already, present is true and there is nothing to do. If the entry
// says anything else, the error wraps ErrNotPresent: the process may have changed its
// rights to the page, or have a private copy in a page file.
func (g *Guest) PageInGuards(id Identity, va uint64) (guards []source.Guard, present bool, err error) {
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
	// A page-in needs a guard for the entry, and an action takes only source.MaxGuards. The
	// DTB's guard can go: every action requires that the DTB is loaded.
	return []source.Guard{of.Created, of.PID, of.Alive, {GPA: m.Entry, Mask: ^uint64(0), Value: m.PTE}}, false, nil
}

// sectionAlone reports whether an invalid entry leaves everything to the section. An entry
// of zero leaves it to the range's descriptor, and so does a page table that is not there.
// Any other such entry refers to the section's prototype entry. If it says "see the VAD" in
// place of an address, the page has rights of its own.
func sectionAlone(pte uint64) bool {
	if pte == 0 {
		return true
	}
	address := pte >> protoShift
	return pte&ptePrototype != 0 && pte&pteTransition == 0 && uint32(address) != 0xffffffff && address>>16 != 0xffffffff
}
