package confine

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"time"
	"unsafe"

	"github.com/landlock-lsm/go-landlock/landlock"
	llsys "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/psx"
)

// Limits are what the process may use from now on.
type Limits struct {
	Memory  uint64 // bytes of address space beyond what it has; 0 for no limit
	Threads uint64 // of its user, all processes together; 0 for no limit
}

// Enter puts the calling process into the sandbox. There is no way back. abi is the version
// of the kernel's Landlock that is in force. If the kernel has none, abi is 0, and the
// filter of system calls alone closes the file system. After an error the process must not
// touch anything hostile.
func Enter(l Limits) (abi int, err error) {
	// A timer makes the runtime open the descriptors that it needs to wait.
	time.Sleep(time.Microsecond)
	used, err := addressSpace()
	if err != nil {
		return 0, err
	}
	// No process of the same user may trace it or read its memory.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return 0, fmt.Errorf("make the process unreadable: %w", err)
	}
	if err := dropCapabilities(); err != nil {
		return 0, err
	}
	if abi, err = closeFiles(); err != nil {
		return 0, err
	}
	if err := limit(l, used); err != nil { // after Landlock, which opens a descriptor
		return 0, err
	}
	if err := filter(os.Getpid()); err != nil {
		return 0, fmt.Errorf("filter system calls: %w", err)
	}
	return abi, nil
}

// landlockABI returns the version of the kernel's Landlock, or 0 and an error if it has
// none.
func landlockABI() (int, error) { return llsys.LandlockGetABIVersion() }

// closeFiles uses Landlock to take the file system and, if the kernel can, the network from
// every thread. It returns Landlock's version, or 0 if the kernel has none.
func closeFiles() (int, error) {
	abi, err := landlockABI()
	if err != nil || abi == 0 {
		return 0, nil // a kernel without Landlock; there is still the filter
	}
	if err := landlock.V5.BestEffort().Restrict(); err != nil {
		return 0, fmt.Errorf("close the file system and the network by Landlock: %w", err)
	}
	return abi, nil
}

// resource is a resource limit of the kernel.
type resource struct {
	name string
	id   int
	max  uint64
}

// limit sets the resource limits of a process that uses the given address space, in bytes.
func limit(l Limits, used uint64) error {
	set := []resource{
		{"descriptors", unix.RLIMIT_NOFILE, 0}, // open ones stay open
		{"file size", unix.RLIMIT_FSIZE, 0},
		{"core size", unix.RLIMIT_CORE, 0},
		{"locked memory", unix.RLIMIT_MEMLOCK, 0},
		{"message queues", unix.RLIMIT_MSGQUEUE, 0},
	}
	if l.Memory > 0 {
		set = append(set, resource{"address space", unix.RLIMIT_AS, used + l.Memory})
		// The garbage collector works harder before the limit is reached.
		debug.SetMemoryLimit(int64(l.Memory / 4 * 3))
	}
	if l.Threads > 0 {
		set = append(set, resource{"threads", unix.RLIMIT_NPROC, l.Threads})
	}
	for _, s := range set {
		if err := unix.Setrlimit(s.id, &unix.Rlimit{Cur: s.max, Max: s.max}); err != nil {
			return fmt.Errorf("limit %s to %d: %w", s.name, s.max, err)
		}
	}
	return nil
}

// addressSpace returns how much the process has mapped or reserved, in bytes.
func addressSpace() (uint64, error) {
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0, fmt.Errorf("measure the address space: %w", err)
	}
	var pages uint64
	if _, err := fmt.Sscan(string(text), &pages); err != nil {
		return 0, fmt.Errorf("measure the address space: %w", err)
	}
	return pages * uint64(os.Getpagesize()), nil
}

// The system call takes addresses as numbers, so these must not move.
var (
	capHead = &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	capNone = &[2]unix.CapUserData{}
)

// dropCapabilities gives up every capability on all threads, and the way to get new ones.
func dropCapabilities() error {
	if _, _, e := psx.Syscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); e != 0 {
		return fmt.Errorf("renounce new privileges: %w", e)
	}
	if _, _, e := psx.Syscall6(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0, 0); e != 0 && !errors.Is(e, unix.EINVAL) {
		return fmt.Errorf("drop ambient capabilities: %w", e)
	}
	// Version 3 has two words for each set. PID 0 is the calling thread.
	_, _, e := psx.Syscall3(unix.SYS_CAPSET, uintptr(unsafe.Pointer(capHead)), uintptr(unsafe.Pointer(capNone)), 0)
	if e != 0 {
		return fmt.Errorf("drop capabilities: %w", e)
	}
	return nil
}
