// Package kill makes a guest terminate one of its processes, and proves that it did.
//
// It redirects a thread of the target, when that is in user mode, to the guest's own
// NtTerminateProcess. So the guest's kernel tears down the process itself. A target that
// never enters user mode is ended by a surrogate: a thread of a service that runs as
// LocalSystem. The thread is parked at a jump to itself. It then makes the calls
// NtOpenProcess, NtTerminateProcess and NtClose for exactly that target, and gets its whole
// context back.
//
// No action rests on what was read earlier. Some conditions make a process the one that was
// meant, and one that may be ended. The module gets these conditions with the action and
// checks them at the moment of delivery. The outcome is what the guest's own memory says
// afterwards. A thread that was parked is always given back, even if the caller has given
// up.
//
// The package owns the controls that it opens on its Host, and the contexts saved in them.
// It prints nothing and decides nothing: package verdict says what may be killed.
package kill
