package finding

import "fmt"

// KernelPID is the PID of a finding that is in no process but in the kernel: in a driver,
// or in memory of the kernel's own. Such a finding has no process's name. PID 4 is
// another thing: the process System.
const KernelPID = 0

// Where says in words what a finding with a PID and a process's name is in: "the kernel",
// or "process NAME, pid N". The name is the guest's and not escaped.
func Where(pid uint64, process string) string {
	if pid == KernelPID {
		return "the kernel"
	}
	return fmt.Sprintf("process %s, pid %d", process, pid)
}

// Tag is Where in short, for a line of its own as clamscan writes one: "kernel", or
// "NAME[N]".
func Tag(pid uint64, process string) string {
	if pid == KernelPID {
		return "kernel"
	}
	return fmt.Sprintf("%s[%d]", process, pid)
}

// Owner is Where without the PID, for a table that has it in another column: "kernel", or
// the name.
func Owner(pid uint64, process string) string {
	if pid == KernelPID {
		return "kernel"
	}
	return process
}
