// Package confine takes away from the calling process, for good, everything that a parser
// of hostile bytes does not need: files, network, other processes, privileges and new code.
// It leaves memory, threads, time, and the descriptors that are open.
//
// Two kernel mechanisms overlap on purpose. Landlock takes away the file system and the
// network, whichever system call asks for them. Seccomp takes away system calls, whatever
// they would reach. The package imports no other package of the project.
package confine
