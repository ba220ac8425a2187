// Package live holds no code: its tests run bin/vmav as a user does, against guests that
// run as libvirt domains on this host, and compare what it says with what the guests say
// of themselves. They need `make build guest` and a libvirt at qemu:///session
// (testdata/with-libvirt.sh).
package live
