// Package memhook is the client of the kvm-memhook kernel module. Through it a running KVM
// guest's memory and registers are read, and hooks and actions are set. It follows the
// module's uapi header; a test compares the two. It imports only package source.
//
// Open takes the VM's descriptor out of the QEMU process and attaches to it. Batches are
// copied from a mapping of guest memory, and single reads go through the module. Both
// report a hole, and a page that QEMU has given up, as an error. Hooks and actions belong
// to controls (Control). Each control has a descriptor of its own. When that is closed, or
// this process ends, the module undoes whatever the control has pending.
//
// The module follows the VM's process. Once that has ended, every call fails with
// source.ErrGone.
package memhook
