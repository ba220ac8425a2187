// Package pdb reads Microsoft program databases: the MSF 7.0 container, the identity that a
// debug record refers to, the sections of the program, its public and global symbols, and
// the types of its structures.
//
// A File is read through an io.ReaderAt, stream by stream, and never as a whole: the
// directory of streams and the type stream are held in memory, and symbols are read one at
// a time. PDBs come from symbol servers and mirrors and are not trusted: every size and
// index is checked against the file's size, and a file that contradicts itself is an error
// that wraps ErrCorrupt. The package imports no other package of the project and knows
// nothing of Windows kernels.
//
// Layouts are those of Microsoft's published sources (github.com/microsoft/microsoft-pdb:
// cvinfo.h for records, dbi.h and tpi.h for the streams' headers) and of LLVM's "The PDB
// File Format".
package pdb
