package memhook

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctl issues one call. The memory of the argument must not move during it. The call is
// repeated if a signal interrupted it before it had any effect.
func ioctl(fd int, req uintptr, arg unsafe.Pointer) (int, error) {
	for {
		r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(arg))
		runtime.KeepAlive(arg)
		switch errno {
		case 0:
			return int(r), nil
		case unix.EINTR:
			continue
		}
		return 0, errno
	}
}
