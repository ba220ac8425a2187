// Package qemu reads the memory of a running guest out of its QEMU process, without
// changing or stopping QEMU. It reads guest RAM with process_vm_readv, and asks QEMU's
// monitor for the layout of RAM and for the vCPU registers. It works for TCG and KVM and
// never writes. It imports only package source; the caller supplies the connection to the
// monitor.
//
// The process can end at any moment. Each read checks a pidfd after the copy, so that bytes
// of another process that has been given the same process id are never returned.
package qemu
