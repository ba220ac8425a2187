// Package introspect reads a Windows guest from outside. It translates virtual addresses,
// finds the kernel, and lists processes, modules, drivers and address ranges from nothing
// but guest memory.
//
// It owns everything that interprets Windows structures in memory. It reads through a
// source.Source, which it does not close, and takes structure layouts from a
// winstruct.Profile. It imports no other package of the project: it knows nothing of
// libvirt, scanning, killing or reports.
//
// Guest memory is hostile input. Each structure is copied once and the copy is validated.
// Every list, string and depth has a bound. A false, cyclic or torn structure is an error
// of the object it belongs to; the enumeration of the others goes on.
package introspect
