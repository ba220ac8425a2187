// Package watch is the service: it follows the domains of a libvirt, sweeps each Windows
// in full once its kernel is up, then every process and image that comes, within
// milliseconds, and everything again now and then.
//
// A Service owns its connection to libvirt, its engine, its socket and one follower for
// each domain. A follower owns the source of its domain, which it opens anew when QEMU, the
// module or libvirt went away. What is found is handed to a Recorder; what is done about it
// is the policy's and the sweep's. It never prints.
package watch
