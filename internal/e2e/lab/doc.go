// Package lab holds no code: its tests run bin/vmav and the module in the nested lab, where
// the guests are KVM domains (kernel/kvm-memhook/lab, make test-kvm). Outside the lab they
// do nothing.
package lab
