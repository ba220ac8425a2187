// Package memhook is the client of the kvm-memhook kernel module: a running KVM
// guest's memory, registers, hooks and actions. It is written against the module's
// uapi header, which a test compares it with.
//
// Open takes the VM's descriptor out of the QEMU process and attaches to it. Batches
// are copied from a mapping of guest memory and single reads go through the module;
// both report a hole, or a page that the VMM has given up, as an error. Hooks and
// actions belong to sessions (Control), each with a descriptor of its own: when it is
// closed, or this process dies, the module undoes what the session has pending.
//
// The module follows the VM's process. Once that has ended every call fails with
// source.ErrGone.
package memhook
