// Package ntguest lays out the memory of a Windows guest from nothing but the
// layout facts of a real kernel build, so that vmav can be tested where no Windows
// can be installed. The result is a Machine: guest-physical memory, the truth
// about it, and what the runtime kernel in testdata/ntguest needs to let it run.
//
// The package must not share code with the readers that it tests: it imports no
// introspect, source, pe or clam. What Windows looks like comes from the profile of
// the build, from Microsoft's documentation and from "Windows Internals" (7th
// edition); Volatility 3, which knows nothing of this project, is the judge
// (docs/TESTING.md).
package ntguest
