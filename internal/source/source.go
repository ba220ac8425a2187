// Package source gives access to the physical memory and vCPU registers of one
// guest, wherever they come from: a running QEMU process, a memory image file,
// or the kvm-memhook module.
//
// It is the lowest layer: it knows nothing of Windows, of libvirt or of PE
// files, and imports no other package of the project. It is the only package
// tree that maps foreign memory or issues ioctls.
//
// Everything read through a Source was written by the guest and is hostile
// input. A Source guarantees only that what it returns was in guest RAM at
// some moment during the call; two reads of one address may differ.
package source

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
)

// PageSize is the granule of guest-physical memory, in bytes.
const PageSize = 4096

// Sentinel errors; test for them with errors.Is.
var (
	// ErrGone reports that the guest went away: its QEMU process has exited.
	// Every later call on the same Source fails with it.
	ErrGone = errors.New("guest is gone")
	// ErrHole reports an address that no guest RAM backs: a hole, MMIO, or a
	// part of an image file that was not saved. Holes never read as zeros.
	ErrHole = errors.New("no guest RAM at this address")
	// ErrNoRegisters reports a source that does not know the vCPU registers.
	ErrNoRegisters = errors.New("source has no vCPU registers")
	// ErrClosed reports use of a Source after Close.
	ErrClosed = errors.New("source is closed")
)

// Range is a run of guest RAM: [Start, Start+Size), both multiples of PageSize.
type Range struct {
	Start uint64 // guest-physical address
	Size  uint64 // bytes
}

// End is the first guest-physical address after the range.
func (r Range) End() uint64 { return r.Start + r.Size }

// Info says what a Source is, for the user.
type Info struct {
	Kind string // "qemu", "image" or "memhook"
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
	CPL            uint8 // 0 to 3
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

// Source is the physical memory of one guest. Its methods are safe for
// concurrent use. The caller that opened it closes it; Close may be called
// while reads are under way, which then fail with ErrClosed or complete.
type Source interface {
	// ReadPhys fills p from guest-physical address addr. All or nothing: on
	// error the content of p is undefined. The error wraps ErrHole, ErrGone or
	// ErrClosed where one of them is the cause. It does not allocate when it
	// succeeds.
	ReadPhys(p []byte, addr uint64) error
	// Ranges returns guest RAM in ascending order, without overlap. The caller
	// must not change the slice.
	Ranges() []Range
	// Registers takes a snapshot of every vCPU, or fails with ErrNoRegisters.
	Registers(ctx context.Context) ([]Registers, error)
	Info() Info
	Close() error
}

// Request is one read of a batch. Err is set for each request by itself.
type Request struct {
	Addr uint64 // guest-physical address
	P    []byte // filled on success
	Err  error
}

// BatchReader is the optional capability to read many places in one go. Where a
// Source lacks it, ReadBatch falls back on single reads.
type BatchReader interface {
	// ReadPhysBatch serves every request and sets its Err. It returns an error
	// only where nothing could be served at all (ErrGone, ErrClosed).
	ReadPhysBatch(reqs []Request) error
}

// Shared is a run of guest memory in a file.
type Shared struct {
	Range
	Offset uint64 // bytes into the file
}

// Sharer is the optional capability to have another process of ours map guest memory.
type Sharer interface {
	// Share returns a file that can be mapped shared and read-only, and where guest
	// memory lies in it. The caller closes the file. It is for a program that maps it and
	// then closes it: what else can be done with the file is the source's own business.
	Share() (*os.File, []Shared, error)
}

// CopyView copies from mapped guest memory to p and tells whether all of it could be read. A page
// of the view that has gone costs an answer of false, not the program: the fault is
// caught on this goroutine. It does not allocate.
func CopyView(p, view []byte) (ok bool) {
	old := debug.SetPanicOnFault(true)
	defer func() {
		debug.SetPanicOnFault(old)
		if e := recover(); e != nil {
			// Only the runtime's report of a bad address; anything else is a mistake.
			if _, fault := e.(interface{ Addr() uintptr }); !fault {
				panic(e)
			}
			ok = false
		}
	}()
	return copy(p, view) == len(p)
}

// FailAll gives every request the error that a batch failed with as a whole, unless it
// is nil, and returns it.
func FailAll(reqs []Request, err error) error {
	if err != nil {
		for i := range reqs {
			reqs[i].Err = err
		}
	}
	return err
}

// ReadBatch reads through s's BatchReader where it has one.
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

// AccessError says which guest-physical access failed. Its cause is one of the
// sentinels of this package or an operating system error.
type AccessError struct {
	Addr  uint64
	Size  int
	Write bool
	Err   error
}

func (e *AccessError) Error() string {
	verb := "read"
	if e.Write {
		verb = "write"
	}
	return fmt.Sprintf("%s %d bytes of guest-physical memory at %#x: %v", verb, e.Size, e.Addr, e.Err)
}

func (e *AccessError) Unwrap() error { return e.Err }
