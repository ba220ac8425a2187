// Package scan is the half of vmav that looks. It finds the kernel of one guest, lists its
// processes and drivers, copies each image, rebuilds the file that was loaded, and lets
// ClamAV scan that file. It tells Events what it finds, what it could not read, and how far
// it is.
//
// It decides nothing, acts on nothing and records nothing. That is the other half, package
// respond. So it must not import respond, kill, policy, history, evidence, notify or
// report. A scan is a Request, which is only data, and a Scanner carries it out: InProcess
// in this package, or a process without rights (package worker).
//
// A scan never stops at something that it cannot read. It names the thing, and the guest
// then never counts as clean. The memory that a scan needs is bounded by the number of
// images in work at once times the largest image that it accepts.
package scan
