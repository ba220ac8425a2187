// Package watch is the service. It follows the domains of a libvirt. It scans each Windows
// in full when its kernel is up, and again at intervals: these scans are sweeps. It scans
// every new process and image within milliseconds.
//
// A Service owns its connection to libvirt, its engine, its socket, and one follower for
// each domain. A follower owns the source of its domain and opens it again when QEMU, the
// module or libvirt went away. What is found goes to a respond.Account, and the policy
// decides what is done about it. The package never prints.
package watch
