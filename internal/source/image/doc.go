// Package image reads guest memory from a file: raw memory, the ELF core that
// `virsh dump --memory-only` and QEMU's dump-guest-memory write, or LiME.
//
// Files are read with pread, not mapped: a file that another program truncates
// while it is read then gives an error and not a SIGBUS, and page caching is the
// kernel's. Everything in a file is hostile input; headers are bounded and ranges
// checked against the file's size before anything is read.
package image
