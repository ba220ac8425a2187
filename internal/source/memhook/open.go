package memhook

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"vmav.dev/vmav/internal/source"
)

// Device is the path of the module's device.
const Device = "/dev/kvm-memhook"

// Version returns the interface version of the loaded module. It fails with ErrAbsent or
// ErrDenied. If the major version is not this client's it fails with ErrAPI, and still
// returns the version.
func Version() (major, minor int, err error) {
	fd, err := openDevice()
	if err != nil {
		return 0, 0, &OpError{Op: "open " + Device, Err: err}
	}
	defer unix.Close(fd)
	return version(fd)
}

func openDevice() (int, error) {
	fd, err := unix.Open(Device, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, deviceError(err)
	}
	return fd, nil
}

func version(device int) (major, minor int, err error) {
	v, err := ioctl(device, getAPI, nil)
	if err != nil {
		return 0, 0, &OpError{Op: "ask for the interface version", Err: guestError(err)}
	}
	major, minor = v>>16, v&0xffff
	if major != apiMajor || minor < apiMinor {
		err = &OpError{Op: "ask for the interface version", Err: fmt.Errorf("%w: it is %d.%d, this program needs %d.%d", ErrAPI, major, minor, apiMajor,
			apiMinor)}
	}
	return major, minor, err
}

// Guest is an attachment to one VM. It implements source.Source, BatchReader, Sharer,
// Writer and Controller.
type Guest struct {
	pid  int
	name string

	mu     sync.RWMutex // held for reading while a descriptor or a mapping is in use
	fd     int          // the attachment that memory is read through
	vm     int          // the VM's own descriptor, for further attachments
	device int
	closed bool

	layout layout
}

// Open attaches to the VM of a process. name is for messages. It fails with ErrAbsent,
// ErrDenied, ErrNotKVM, ErrForeignKVM or ErrAPI, or with source.ErrGone if the process ends
// meanwhile. The caller closes the Guest; one that nobody closes is closed by the garbage
// collector.
func Open(ctx context.Context, name string, pid int) (*Guest, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	g := &Guest{pid: pid, name: name, fd: -1, vm: -1, device: -1}
	if err := g.open(); err != nil {
		g.Close()
		return nil, err
	}
	runtime.SetFinalizer(g, func(g *Guest) { g.Close() })
	return g, nil
}

func (g *Guest) open() (err error) {
	if g.device, err = openDevice(); err != nil {
		return &OpError{Op: "open " + Device, Err: err}
	}
	if _, _, err = version(g.device); err != nil {
		return err
	}
	if g.vm, err = vmDescriptor(g.pid); err != nil {
		return &OpError{Op: "take the KVM descriptor", PID: g.pid, Err: err}
	}
	if g.fd, err = g.attach(); err != nil {
		return err
	}
	return g.relayout()
}

// attach makes one more attachment to the VM.
func (g *Guest) attach() (int, error) {
	arg := attachArg{API: api, VMFd: int32(g.vm)}
	fd, err := ioctl(g.device, attach, unsafe.Pointer(&arg))
	if err != nil {
		return -1, &OpError{Op: "attach to the VM", PID: g.pid, Err: attachError(err)}
	}
	return fd, nil
}

// vmDescriptor duplicates the VM's descriptor of a process. It finds it by its name only;
// the module checks what it is.
func vmDescriptor(pid int) (int, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1, guestError(err)
	}
	defer unix.Close(pidfd)
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return -1, processError(err)
	}
	for _, e := range entries {
		target, err := os.Readlink(dir + "/" + e.Name())
		if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
			return -1, processError(err)
		}
		if err != nil || !strings.HasPrefix(target, "anon_inode:kvm-vm") {
			continue
		}
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		// The call fails unless the pidfd refers to the process whose directory was read: a
		// process id is not reused while the process lives.
		fd, err := unix.PidfdGetfd(pidfd, n, 0)
		if errors.Is(err, unix.EBADF) {
			continue // closed meanwhile
		}
		if err != nil {
			return -1, processError(err)
		}
		return fd, nil
	}
	return -1, ErrNotKVM
}

func processError(err error) error {
	switch {
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: it takes the right to trace the process", ErrDenied)
	case errors.Is(err, unix.ENOENT):
		return source.ErrGone
	}
	return guestError(err)
}

// call issues an ioctl on the memory attachment.
func (g *Guest) call(req uintptr, arg unsafe.Pointer) error {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if g.closed {
		return source.ErrClosed
	}
	_, err := ioctl(g.fd, req, arg)
	return guestError(err)
}

// Info implements source.Source.
func (g *Guest) Info() source.Info {
	return source.Info{Kind: source.KindMemhook, Name: g.name, Form: fmt.Sprintf("kvm-memhook, pid %d", g.pid), Live: true}
}

// Close implements source.Source. It waits for calls that are in progress. Controls stay
// open.
func (g *Guest) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil
	}
	g.closed = true
	runtime.SetFinalizer(g, nil)
	err := g.layout.unmap()
	for _, fd := range []int{g.fd, g.vm, g.device} {
		if fd >= 0 {
			err = errors.Join(err, unix.Close(fd))
		}
	}
	return err
}
