package memhook

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"vmav.dev/vmav/internal/source"
)

// Why a guest cannot be had through the module; test with errors.Is.
var (
	// ErrAbsent reports that the module is not loaded.
	ErrAbsent = errors.New("the kvm-memhook module is not loaded")
	// ErrDenied reports that the device, or the QEMU process, is not the caller's to use.
	ErrDenied = errors.New("permission denied")
	// ErrNotKVM reports a process that runs no KVM VM: a domain under software
	// emulation, or no VMM at all.
	ErrNotKVM = errors.New("the process runs no KVM guest")
	// ErrForeignKVM reports a KVM that is not the stock module.
	ErrForeignKVM = errors.New("this KVM is not the stock kernel module")
	// ErrAPI reports a module of another version than this client was built for.
	ErrAPI = errors.New("the kvm-memhook module has another interface version")
)

// OpError says which operation on a guest failed.
type OpError struct {
	Op  string // "attach", "read registers of vCPU 1", "redirect"
	PID int    // of the VMM; 0 for the device itself
	Err error
}

func (e *OpError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("kvm-memhook: %s: %v", e.Op, e.Err)
	}
	return fmt.Sprintf("kvm-memhook: %s of process %d: %v", e.Op, e.PID, e.Err)
}

func (e *OpError) Unwrap() error { return e.Err }

// guestError turns what a call on a VM's descriptor failed with into this package's
// and source's words.
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

// deviceError is why the device could not be opened.
func deviceError(err error) error {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return ErrAbsent
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Errorf("%s: %w", Device, ErrDenied)
	}
	return err
}

// attachError is why a VM's descriptor was refused.
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
