// Package ready finds out what a host lacks to run vmav, and which command mends it. It
// looks at KVM, libvirt and the right to read its QEMU processes, the kernel module,
// ClamAV, profiles, the service and its directories, and at what the kernel offers to
// confine workers.
//
// It only looks, and changes nothing. Each answer that is not well names the command
// that mends it. cmd/vmav prints the answers.
package ready
