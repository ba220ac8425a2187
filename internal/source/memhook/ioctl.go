package memhook

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctl issues one call; the argument's memory stays where it is meanwhile. It is
// repeated where a signal cut it off before anything happened.
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
