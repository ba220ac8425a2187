// Package image reads guest memory from a file: raw memory, the ELF core that `virsh dump
// --memory-only` and QEMU's dump-guest-memory write, or LiME. It owns the file and imports
// only package source.
//
// Files are read with pread and not mapped. If another program truncates a file, reading it
// gives an error and not a SIGBUS, and the kernel does the caching. Everything in a file is
// hostile input: headers are bounded, and ranges are checked against the file's size before
// anything is read.
package image
