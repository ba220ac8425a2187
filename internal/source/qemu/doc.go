// Package qemu reads the memory of a running guest out of its QEMU process, without
// configuring or touching it: guest RAM with process_vm_readv, the layout of RAM and
// the vCPU registers from QEMU's monitor. It works for TCG and KVM alike and never
// writes.
//
// The process can end at any moment. A pidfd tells, and every read is checked
// against it after the copy, so that a process id that the kernel hands out again
// never yields another process's bytes.
package qemu
