// Package domain finds libvirt domains and the QEMU process behind each. It is the
// only package that talks to libvirt; it imports internal/source to hand out the
// memory of a domain and nothing else of the project.
//
// A Host owns its connection; domains are plain values and own nothing. A Watcher owns a
// connection that it makes again when it breaks, and tells what happens to domains.
package domain
