package memhook

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"vmav.dev/vmav/internal/source"
)

// Reasons why a guest cannot be opened through the module. Test for them with errors.Is.
var (
	// ErrAbsent reports that the module is not loaded.
	ErrAbsent = errors.New("the kvm-memhook module is not loaded")
	// ErrDenied reports that the caller may not use the device or the QEMU process.
	ErrDenied = errors.New("permission denied")
	// ErrNotKVM reports a process that has no KVM VM: a domain under software emulation, or
	// a process that is no VMM.
	ErrNotKVM = errors.New("the process runs no KVM guest")
	// ErrForeignKVM reports a VM of a KVM that is not the kernel's own module.
	ErrForeignKVM = errors.New("this KVM is not the stock kernel module")
	// ErrAPI reports a module whose interface version does not fit this client.
	ErrAPI = errors.New("the kvm-memhook module has another interface version")
)

// OpError says which operation on a guest failed.
type OpError struct {
	Op  string // "attach", "read registers of vCPU 1", "redirect"
	PID int    // of the VMM; 0 for the device itself
	Err error
}

// Error implements error.
func (e *OpError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("kvm-memhook: %s: %v", e.Op, e.Err)
	}
	return fmt.Sprintf("kvm-memhook: %s of process %d: %v", e.Op, e.PID, e.Err)
}

// Unwrap returns the cause, for errors.Is and errors.As.
func (e *OpError) Unwrap() error { return e.Err }

// guestError translates the error of a call on a VM's descriptor into errors of this
// package and of source.
func guestError(err error) error {
	switch {
	case errors.Is(err, unix.ESRCH):
		return source.ErrGone
	case errors.Is(err, unix.ENXIO):
		return source.ErrHole
	case errors.Is(err, unix.ENOTTY):
		return fmt.Errorf("%w (%w)", ErrAPI, err)
	}
	return err
}

// deviceError translates the error of opening the device.
func deviceError(err error) error {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return ErrAbsent
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Errorf("%s: %w", Device, ErrDenied)
	}
	return err
}

// attachError translates the error of attaching to a VM's descriptor.
func attachError(err error) error {
	switch {
	case errors.Is(err, unix.EPROTO):
		return ErrAPI
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EBADF):
		return ErrNotKVM
	case errors.Is(err, unix.EOPNOTSUPP):
		return ErrForeignKVM
	}
	return guestError(err)
}
