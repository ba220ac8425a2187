// Package e2e holds no code: its tests run bin/vmav as a user does, against guests
// that run as libvirt domains, and compare what it says with what the guests say of
// themselves. They need `make build` and a libvirt at qemu:///session
// (testdata/with-libvirt.sh).
package e2e
