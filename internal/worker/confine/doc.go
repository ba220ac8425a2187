// Package confine takes from the calling process, for good, all that a parser of hostile
// bytes has no use for: files, network, other processes, privileges, new code. What it
// leaves is memory, threads, time, and the descriptors that are open.
//
// Two kernel mechanisms overlap on purpose. Landlock takes the file system and the network
// away whatever the system call; seccomp takes the system calls away whatever they would
// reach. The package imports no other of the project.
package confine
