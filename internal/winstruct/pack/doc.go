// Package pack reads and writes a pack: one file with what vmav reads of many kernels. A
// kernel is looked up without parsing the others.
//
// A pack holds each structure once, however many kernels have it so, each layout (a list of
// structures) once, and for every kernel its identity, its version, its layout and the RVAs
// of its symbols. The package owns the container: it takes a structure's definition as
// text, which winstruct writes and parses. It imports no other package of the project.
//
// All numbers of fixed width are big endian, offsets and counts have 32 bits:
//
//	"vmavpack", format, SHA-256 of all that follows
//	count of kernels, then each one's GUID (16 bytes) and age, in ascending order
//	seven tables: facts, names, sources, structures, layouts, symbol lists, records
//
// A table is a count, the end of each item counted from the first item's start, and the
// items. Names are text, and are referred to by their number:
//
//	facts        the names of what the readers asked for; what a pack does not name as a
//	             fact it says nothing about
//	names        of PDBs, versions, architectures, symbols and sources
//	sources      lists of three numbers of names: of, from, verified
//	structures   definitions
//	layouts      lists of numbers of structures, ascending
//	symbol lists lists of numbers of names
//	records      one for each kernel, in the order of the GUIDs: numbers of its PDB, version,
//	             architecture, sources, layout and symbol list, then the RVAs of that list
//
// Numbers in lists and records are unsigned varints. Nothing in a pack is trusted: counts
// and offsets are bounded before anything is allocated by them.
package pack
