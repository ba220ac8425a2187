// Package e2e holds no code: its tests run bin/vmav as a user does, against guests
// that run as libvirt domains, and compare what it says with what the guests say of
// themselves. They need `make build` and a libvirt at qemu:///session
// (testdata/with-libvirt.sh). The tests named Lab run in the nested lab, where the
// guests are KVM domains and the module is loaded (make test-kvm).
package e2e
