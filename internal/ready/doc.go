// Package ready finds out what a host lacks to run vmav, and how to mend it: KVM, libvirt
// and the right to read its QEMU processes, the kernel module, ClamAV, profiles, the
// service, its directories, and what the kernel offers to confine workers with.
//
// It looks and changes nothing. Each answer that is not well says the command that mends
// it. It prints nothing: cmd/vmav does.
package ready
