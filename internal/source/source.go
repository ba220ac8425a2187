// Package source gives access to the physical memory and the vCPU registers of one guest.
// They come from a running QEMU process, a memory image file, or the kvm-memhook module.
//
// It is the lowest layer: it knows nothing of Windows, libvirt or PE files, and imports no
// other package of the project. Only packages below it map foreign memory or issue ioctls.
//
// Everything read through a Source was written by the guest and is hostile input. A Source
// guarantees only that the bytes were in guest RAM at some moment during the call. Two
// reads of one address may differ.
package source

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
)

// PageSize is the size of a page of guest-physical memory, in bytes.
const PageSize = 4096

// Sentinel errors; test for them with errors.Is.
var (
	// ErrGone reports that the guest has ended: its QEMU process has exited. Every later
	// call on the same Source fails with it.
	ErrGone = errors.New("guest is gone")
	// ErrHole reports an address without guest RAM: a hole, MMIO, or a part that an image
	// file does not have. Holes never read as zeros.
	ErrHole = errors.New("no guest RAM at this address")
	// ErrNoRegisters reports a source that does not know the vCPU registers.
	ErrNoRegisters = errors.New("source has no vCPU registers")
	// ErrClosed reports use of a Source after Close.
	ErrClosed = errors.New("source is closed")
)

// Range is a contiguous range of guest RAM, [Start, Start+Size). Both are multiples of
// PageSize.
type Range struct {
	Start uint64 // guest-physical address
	Size  uint64 // bytes
}

// End is the first guest-physical address after the range.
func (r Range) End() uint64 { return r.Start + r.Size }

// Kinds of sources, as users read them.
const (
	KindMemhook = "memhook" // through the kernel module
	KindQEMU    = "qemu"    // through the QEMU process
	KindImage   = "image"   // a file
)

// Info describes a Source to the user.
type Info struct {
	Kind string // one of the kinds
	Name string // domain name or file name
	Form string // more detail: "process_vm_readv, pid 4711", "ELF core", "raw"
	Live bool   // the guest may run while it is read
}

// Segment is the cached part of a segment register that introspection needs.
type Segment struct {
	Selector uint16
	Base     uint64
}

// Registers is a snapshot of one vCPU.
type Registers struct {
	CPU            int
	RIP, RSP       uint64
	RFLAGS         uint64
	GPR            [16]uint64 // RAX RCX RDX RBX RSP RBP RSI RDI R8..R15, in encoding order
	CS, SS, FS, GS Segment
	CPL            uint8 // current privilege level, 0 to 3
	CR0, CR2       uint64
	CR3, CR4       uint64
	EFER           uint64 // 0 where the source does not carry it
	LSTAR          uint64 // 0 where the source does not carry it
	KernelGSBase   uint64
	IDTBase        uint64
	IDTLimit       uint32 // bytes, less one
	GDTBase        uint64
	Halted         bool
}

// Source is the physical memory of one guest. Its methods are safe for concurrent use.
// Whoever opened it closes it. Close may be called during reads; these either complete or
// fail with ErrClosed.
type Source interface {
	// ReadPhys fills p from guest-physical address addr, or fails as a whole; on error the
	// content of p is undefined. The error wraps ErrHole, ErrGone or ErrClosed if that is
	// the cause. It does not allocate when it succeeds.
	ReadPhys(p []byte, addr uint64) error
	// Ranges returns the guest's RAM in ascending order, without overlaps. The caller must
	// not change the slice.
	Ranges() []Range
	// Registers takes a snapshot of every vCPU, or fails with ErrNoRegisters.
	Registers(ctx context.Context) ([]Registers, error)
	// Info describes the source to the user.
	Info() Info
	// Close releases the source. Later calls fail with ErrClosed; another Close does nothing.
	Close() error
}

// Request is one read of a batch. Each request has its own outcome in Err.
type Request struct {
	Addr uint64 // guest-physical address
	P    []byte // filled on success
	Err  error
}

// BatchReader is the optional capability to serve many reads in one call. ReadBatch uses
// single reads if a Source does not have it.
type BatchReader interface {
	// ReadPhysBatch serves every request and sets its Err. It returns an error only if no
	// request can be served at all (ErrGone, ErrClosed).
	ReadPhysBatch(reqs []Request) error
}

// Shared is a range of guest memory and its place in a shared file.
type Shared struct {
	Range
	Offset uint64 // bytes into the file
}

// Sharer is the optional capability to let another process of vmav map guest memory.
type Sharer interface {
	// Share returns a file that can be mapped shared and read-only, and the places of guest
	// memory in it. The caller closes the file. The receiver maps the file and closes it;
	// anything else that the file can do is internal to the source.
	Share() (*os.File, []Shared, error)
}

// CopyView copies from mapped guest memory to p and reports whether all of p was filled. If
// a page of the mapping is gone, the fault is caught on this goroutine and the result is
// false. It does not allocate.
func CopyView(p, view []byte) (ok bool) {
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if e := recover(); e != nil {
			// Recover only from the runtime's report of a bad address. Anything else is a
			// bug.
			if _, fault := e.(interface{ Addr() uintptr }); !fault {
				panic(e)
			}
			ok = false
		}
	}()
	return copy(p, view) == len(p)
}

// FailAll sets the error of a batch that failed as a whole in each of its requests, and
// returns it. It does nothing if err is nil.
func FailAll(reqs []Request, err error) error {
	if err != nil {
		for i := range reqs {
			reqs[i].Err = err
		}
	}
	return err
}

// ReadBatch serves requests through s's BatchReader, or one by one if s has none. Each
// request's outcome is in its Err; the result is an error only if the source is gone or
// closed.
func ReadBatch(s Source, reqs []Request) error {
	if b, ok := s.(BatchReader); ok {
		return b.ReadPhysBatch(reqs)
	}
	for i := range reqs {
		r := &reqs[i]
		r.Err = s.ReadPhys(r.P, r.Addr)
		if errors.Is(r.Err, ErrGone) || errors.Is(r.Err, ErrClosed) {
			return r.Err
		}
	}
	return nil
}

// AccessError says which access to guest-physical memory failed. Err is one of this
// package's sentinels or an error of the operating system.
type AccessError struct {
	Addr  uint64
	Size  int
	Write bool
	Err   error
}

// Error implements error.
func (e *AccessError) Error() string {
	verb := "read"
	if e.Write {
		verb = "write"
	}
	return fmt.Sprintf("%s %d bytes of guest-physical memory at %#x: %v", verb, e.Size, e.Addr, e.Err)
}

// Unwrap returns the cause, for errors.Is and errors.As.
func (e *AccessError) Unwrap() error { return e.Err }
