// Package ntguest lays out the memory of a Windows guest from only the layout facts of a
// real kernel build, so that vmav can be tested where Windows cannot be installed. The
// result is a Machine: guest-physical memory, the truth about it, and what the runtime
// kernel in testdata/ntguest needs to run it.
//
// The package must not share code with the readers that it tests: it imports winstruct for
// the facts, and neither introspect, source, pe nor clam. How Windows looks in memory comes
// from the profile of the build, from Microsoft's documentation and from "Windows
// Internals" (7th edition). Volatility 3, which knows nothing of this project, checks it
// (docs/TESTING.md).
package ntguest
