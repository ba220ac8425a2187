// Package kill has a guest terminate one of its processes, and proves that it did.
//
// A thread of the target that is caught in user mode is redirected into the guest's
// own NtTerminateProcess, so that the guest's kernel tears the process down itself. A
// target that never enters user mode is reached through a surrogate: a thread of a
// service that runs as LocalSystem is parked at a jump to itself, makes the calls
// NtOpenProcess, NtTerminateProcess and NtClose for exactly that target, and gets its
// whole context back.
//
// Nothing is done on what was read before: the conditions that make a process the one
// that was meant, and one that may be ended, are handed to the module, which looks at
// them in the moment of delivery. The outcome is what the guest's own memory says
// afterwards. Every path that parked a thread gives it back, also where the caller
// gave up.
//
// The package owns the controls that it opens on its Host and the contexts saved in
// them. It prints nothing and decides nothing: what may be killed is verdict's.
package kill
