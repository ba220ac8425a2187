package finding

import "fmt"

// KernelPID is the PID of a finding that is in the kernel and not in a process: in a
// driver, or in memory that belongs to the kernel. Such a finding has no process name. PID
// 4 is something else: the process System.
const KernelPID = 0

// Where describes where a finding is, by its PID and the name of its process: "the kernel",
// or "process NAME, pid N". The name comes from the guest and is not escaped.
func Where(pid uint64, process string) string {
	if pid == KernelPID {
		return "the kernel"
	}
	return fmt.Sprintf("process %s, pid %d", process, pid)
}

// Tag returns a short form of Where for a line like clamscan's: "kernel", or "NAME[N]". The
// name is not escaped.
func Tag(pid uint64, process string) string {
	if pid == KernelPID {
		return "kernel"
	}
	return fmt.Sprintf("%s[%d]", process, pid)
}

// Owner returns a form of Where without the PID, for a table that shows it in another
// column: "kernel", or the name. The name is not escaped.
func Owner(pid uint64, process string) string {
	if pid == KernelPID {
		return "kernel"
	}
	return process
}
