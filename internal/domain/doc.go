// Package domain finds libvirt domains and the QEMU process behind each of them. It is the
// only package that talks to libvirt. It imports internal/source, to open the memory of a
// domain, and no other package of the project.
//
// A Host owns its connection. A Domain is a plain value and owns nothing. A Watcher owns a
// connection, which it makes again when it breaks, and reports what happens to domains.
package domain
