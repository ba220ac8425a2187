// Package harness is what the tests of bin/vmav on running guests share: the NT test guest
// as a libvirt domain and its own account of itself, the program and what it writes, the
// service and its log, and the chaos around it. Nothing but tests may import it.
//
// Tests use it in two places: package live on the host, where the domains are emulated,
// and package lab in the nested lab, where they are KVM's and the module is loaded.
package harness
