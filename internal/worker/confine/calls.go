package confine

import (
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// needed are the system calls that Go's runtime and the C library under it make once a
// program is up, and those that the worker makes itself: read and write, on its lanes. The
// frequent ones come first.
var needed = []uint32{
	unix.SYS_FUTEX, unix.SYS_READ, unix.SYS_WRITE, unix.SYS_MADVISE, unix.SYS_MUNMAP,
	unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_SCHED_YIELD,
	unix.SYS_EPOLL_PWAIT, unix.SYS_EPOLL_WAIT, unix.SYS_EPOLL_CTL, // for timers; the descriptor is already open
	unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK, unix.SYS_RESTART_SYSCALL,
	unix.SYS_GETTID, unix.SYS_GETPID, unix.SYS_CLOCK_GETTIME, unix.SYS_GETTIMEOFDAY, unix.SYS_TIME,
	unix.SYS_GETRANDOM, unix.SYS_GETCPU, unix.SYS_SCHED_GETAFFINITY,
	unix.SYS_BRK, unix.SYS_SET_ROBUST_LIST, unix.SYS_RSEQ, unix.SYS_CLOSE, unix.SYS_EXIT, unix.SYS_EXIT_GROUP,
}

// deadly are system calls that nothing in a worker makes, whichever library or runtime it
// is built with. A process that makes one has been taken over, so the kernel kills it at
// once. Any other call that is not needed is refused with EPERM, because runtimes try calls
// to see whether they exist.
var deadly = []uint32{
	unix.SYS_EXECVE, unix.SYS_EXECVEAT, unix.SYS_FORK, unix.SYS_VFORK,
	unix.SYS_SOCKET, unix.SYS_SOCKETPAIR, unix.SYS_CONNECT, unix.SYS_BIND, unix.SYS_LISTEN, unix.SYS_ACCEPT, unix.SYS_ACCEPT4,
	unix.SYS_SENDTO, unix.SYS_SENDMSG, unix.SYS_SENDMMSG, unix.SYS_RECVMSG, unix.SYS_RECVMMSG,
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PROCESS_MADVISE,
	unix.SYS_PIDFD_OPEN, unix.SYS_PIDFD_GETFD, unix.SYS_PIDFD_SEND_SIGNAL,
	unix.SYS_KILL, unix.SYS_TKILL, unix.SYS_RT_SIGQUEUEINFO, unix.SYS_RT_TGSIGQUEUEINFO,
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_UNSHARE, unix.SYS_SETNS,
	unix.SYS_FSOPEN, unix.SYS_FSMOUNT, unix.SYS_OPEN_TREE, unix.SYS_MOVE_MOUNT,
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER, unix.SYS_USERFAULTFD,
	unix.SYS_SETUID, unix.SYS_SETGID, unix.SYS_SETREUID, unix.SYS_SETREGID, unix.SYS_SETRESUID, unix.SYS_SETRESGID,
	unix.SYS_SETGROUPS, unix.SYS_SETFSUID, unix.SYS_SETFSGID, unix.SYS_CAPSET,
	unix.SYS_MEMFD_CREATE, unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD,
	unix.SYS_KEYCTL, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_PERSONALITY,
	unix.SYS_IOPL, unix.SYS_IOPERM, unix.SYS_MODIFY_LDT, unix.SYS_ACCT, unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_REBOOT,
	unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_SETHOSTNAME, unix.SYS_SETDOMAINNAME, unix.SYS_QUOTACTL, unix.SYS_SYSLOG,
}

// Flags of the clone calls that make a thread: by the C library, and by Go without it. A
// clone call with other flags makes something else than a thread of this process.
const (
	cloneGo = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_THREAD | unix.CLONE_SYSVSEM
	cloneC  = cloneGo | unix.CLONE_SETTLS | unix.CLONE_PARENT_SETTID | unix.CLONE_CHILD_CLEARTID
)

// conditions are tests under which a system call is allowed.
type conditions struct {
	number uint32
	tests  []test
}

// conditional returns the system calls that depend on their arguments.
func conditional(pid int) []conditions {
	const equal, clear, set = bpf.JumpEqual, bpf.JumpBitsNotSet, bpf.JumpBitsSet
	return []conditions{
		// Only its own memory, and no new code: nothing is mapped or made executable.
		{unix.SYS_MMAP, []test{{2, clear, unix.PROT_EXEC}, {3, set, unix.MAP_ANONYMOUS}}},
		{unix.SYS_MPROTECT, []test{{2, clear, unix.PROT_EXEC}}},
		// Signals to its own threads, by which Go preempts them.
		{unix.SYS_TGKILL, []test{{0, equal, uint32(pid)}}},
		{unix.SYS_CLONE, []test{{0, equal, cloneC}}},
		{unix.SYS_CLONE, []test{{0, equal, cloneGo}}},
		// Not F_SETOWN and F_SETSIG, which make the kernel send signals to others.
		{unix.SYS_FCNTL, []test{{1, equal, unix.F_GETFL}}},
		{unix.SYS_FCNTL, []test{{1, equal, unix.F_GETFD}}},
	}
}
