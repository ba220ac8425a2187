// Package scan is the half of vmav that looks: it finds the kernel of one guest, lists its
// processes and drivers, copies each image out of it, rebuilds the file that was loaded
// and has ClamAV scan that. It tells Events what it finds, what it could not read and how
// far it is.
//
// It decides nothing, acts on nothing and records nothing: that is the other half,
// package respond. So it must import neither that nor kill, policy, history, evidence,
// notify or report. A scan is a Request, which is data, done by a Scanner: InProcess
// here, or a process without rights (package worker).
//
// A scan never stops at something it cannot read: the thing is named, and the guest is
// then never called clean. Memory is bounded by the number of images in work at once
// times the largest image that is taken.
package scan
