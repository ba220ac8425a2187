package introspect

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"vmav.dev/vmav/internal/source"
	"vmav.dev/vmav/internal/winstruct"
)

// Bounds on what a guest may claim.
const (
	maxProcesses = 1 << 16
	maxModules   = 4096
	maxText      = 64 << 10 // bytes of one UNICODE_STRING
	maxVADs      = 1 << 17
)

// Problem is one thing that could not be read. It does not stop the enumeration it
// came up in, but what it touches is incomplete.
type Problem struct {
	What    string // "process 812 (win32.exe)", "driver at 0x…"
	Err     error
	Process Identity // of the process that it is about; zero for none
}

func (p Problem) Error() string { return p.What + ": " + p.Err.Error() }

func (p Problem) Unwrap() error { return p.Err }

// Guest is a Windows guest whose kernel was found and whose build is known. It is
// safe for concurrent use. It does not own its source.
type Guest struct {
	src    source.Source
	t      *tables
	kernel Kernel
	as     *AddressSpace // the System process's
	off    *Offsets
}

// Open finds the kernel of the guest behind src and the profile of its build. It
// fails with ErrNotWindows, ErrBooting or a *winstruct.MissingError where those are
// the reason; the last says that this is a Windows, and which.
//
// Where profiles is Neighbours too and has no profile of the build, the offsets of the
// builds nearest to it are tried (see Neighbours); Kernel.Inferred then says so.
func Open(ctx context.Context, src source.Source, profiles winstruct.Finder) (*Guest, error) {
	t := newTables(src)
	k, err := locate(ctx, t)
	if err != nil {
		return nil, err
	}
	return openKernel(ctx, src, t, k, profiles)
}

// OpenAt is Open of a guest whose kernel was found before. A place that no kernel is at costs
// a look, and the kernel is then found as Open does it.
func OpenAt(ctx context.Context, src source.Source, profiles winstruct.Finder, at Place) (*Guest, error) {
	t := newTables(src)
	if k := revisit(t, at); k != nil {
		return openKernel(ctx, src, t, k, profiles)
	}
	return Open(ctx, src, profiles)
}

// openKernel finds the profile of a kernel's build, and the System process.
func openKernel(ctx context.Context, src source.Source, t *tables, k *located, profiles winstruct.Finder) (*Guest, error) {
	g := &Guest{src: src, t: t, as: k.as,
		kernel: Kernel{Base: k.base, Size: k.size, Identity: k.id, Paging: k.as.f.name, Bits: 8 * int(k.as.f.ptr), Located: k.how}}
	p, err := profiles.Find(k.id)
	var missing *winstruct.MissingError
	if near, ok := profiles.(Neighbours); ok && errors.As(err, &missing) {
		ierr := g.infer(ctx, near)
		if ierr == nil {
			return g, nil
		}
		if ctx.Err() != nil || errors.Is(ierr, ErrBooting) {
			return nil, ierr
		}
		return nil, fmt.Errorf("windows kernel at %#x: %w (%w)", k.base, err, ierr)
	}
	if err != nil {
		return nil, fmt.Errorf("windows kernel at %#x: %w", k.base, err)
	}
	if p.PointerSize() != k.as.f.ptr {
		return nil, fmt.Errorf("windows kernel at %#x: its address space is %s, its profile %s is of %s", k.base, k.as.f.name, k.id, p.Arch)
	}
	if g.off, err = compile(p); err != nil {
		return nil, err
	}
	if err := g.bind(); err != nil {
		return nil, err
	}
	return g, nil
}

// Identify finds the kernel of the guest behind src and tells its build, for which no
// profile need be there.
func Identify(ctx context.Context, src source.Source) (winstruct.Identity, error) {
	k, err := locate(ctx, newTables(src))
	if err != nil {
		return winstruct.Identity{}, err
	}
	return k.id, nil
}

// bind finds the System process and adopts its page tables: those of the vCPU or of
// the scan may be any process's.
func (g *Guest) bind() error {
	head := g.kernel.Base + g.off.Sym.ActiveProcessHead
	first, err := g.as.word(head)
	if err != nil {
		return fmt.Errorf("read PsActiveProcessHead: %w", err)
	}
	if first == 0 || first == head {
		return fmt.Errorf("%w: its kernel has no process yet", ErrBooting)
	}
	eprocess := first - uint64(g.off.Process.Links)
	v, err := g.as.record(eprocess, g.off.Process.Size)
	if err != nil {
		return fmt.Errorf("read the System process at %#x: %w", eprocess, err)
	}
	if pid, name := v.ptr(g.off.Process.PID), v.text8(g.off.Process.Name); pid != 4 || name != "System" {
		return fmt.Errorf("the first process at %#x is pid %d %q, not System: the profile %s does not fit", eprocess, pid, name, g.kernel.Identity)
	}
	g.as = newSpace(g.t, g.as.f, v.ptr(g.off.Process.DTB))
	g.as.noExec = g.usesNoExec()
	if _, err := g.as.word(head); err != nil {
		return fmt.Errorf("the System process's DTB %#x does not map the kernel: %w", g.as.dtb, err)
	}
	g.kernel.DTB = g.as.dtb
	if g.off.Sym.BuildNumber != 0 {
		var b [4]byte
		if g.as.Read(b[:], g.kernel.Base+g.off.Sym.BuildNumber) == nil {
			g.kernel.Build = binary.LittleEndian.Uint32(b[:]) & 0xffff
		}
	}
	g.kernel.Version = g.version()
	if g.off.Sym.MiState != 0 && g.off.InvalidPteMask != winstruct.Missing {
		mask, err := g.as.u64(g.kernel.Base + g.off.Sym.MiState + uint64(g.off.InvalidPteMask))
		if err != nil && !errors.Is(err, ErrNotPresent) {
			return fmt.Errorf("read MiState.Hardware.InvalidPteMask: %w", err)
		}
		g.as.soft.invalidMask = mask
		if f := g.off.SwizzleBit; f.BitCount == 1 {
			g.as.soft.swizzle = 1 << f.BitOffset
		}
	}
	return nil
}

// version is "major.minor.build" from KUSER_SHARED_DATA (NtMajorVersion at 0x26c and
// NtMinorVersion at 0x270 on every build).
func (g *Guest) version() string {
	var b [8]byte
	if g.as.Read(b[:], g.as.f.kuser+0x26c) != nil {
		return fmt.Sprint(g.kernel.Build)
	}
	le := binary.LittleEndian
	return fmt.Sprintf("%d.%d.%d", le.Uint32(b[:]), le.Uint32(b[4:]), g.kernel.Build)
}

// Time is the guest's clock: SystemTime of KUSER_SHARED_DATA, a KSYSTEM_TIME at 0x14 on every
// build (WDK, ntddk.h), whose high half is there twice and is read until it is the same.
// What it says is the guest's to choose; it is the zero time where it says no time.
func (g *Guest) Time() (time.Time, error) {
	var b [12]byte
	for range 100 {
		if err := g.as.Read(b[:], g.as.f.kuser+0x14); err != nil {
			return time.Time{}, fmt.Errorf("read the guest's clock: %w", err)
		}
		if bytes.Equal(b[4:8], b[8:12]) {
			return record{b: b[:]}.time(0), nil
		}
	}
	return time.Time{}, nil
}

// usesNoExec tells whether entries of page tables that lack the bit to forbid execution mean
// that code is meant to run there: 32-bit guests may have no use of the bit, and then say so
// in KUSER_SHARED_DATA.ProcessorFeatures (at 0x274) by PF_NX_ENABLED (Windows SDK, winnt.h).
func (g *Guest) usesNoExec() bool {
	const pfNXEnabled = 12
	if !g.as.f.noExec || g.as.f.wide() {
		return g.as.f.noExec
	}
	var enabled [1]byte
	return g.as.Read(enabled[:], g.as.f.kuser+0x274+pfNXEnabled) == nil && enabled[0] != 0
}

// Kernel says what was established about the guest's kernel.
func (g *Guest) Kernel() Kernel { return g.kernel }

// Memory is the System process's address space: the kernel's own.
func (g *Guest) Memory() *AddressSpace { return g.as }

// Refresh forgets every copy of the guest's page tables, so that what is read next
// is what the guest has now.
func (g *Guest) Refresh() { g.t.flush() }

// Through is the same guest read through another source, which shares nothing of the
// first one's caches: for reading what is there now behind a source that keeps pages.
func (g *Guest) Through(src source.Source) *Guest {
	n := *g
	n.src, n.t = src, newTables(src)
	as := *g.as
	as.t = n.t
	n.as = &as
	return &n
}

// Space is the address space of a process as its kernel mode has it. The user half is
// the one that user mode has, but with KVA shadow it is mapped non-executable.
func (g *Guest) Space(p *Process) *AddressSpace { return g.space(p.DTB) }

// UserSpace is the address space that a process's user mode runs on.
func (g *Guest) UserSpace(p *Process) *AddressSpace {
	if p.UserDTB != 0 {
		return g.space(p.UserDTB)
	}
	return g.space(p.DTB)
}

// space is the address space under a process's page tables.
func (g *Guest) space(dtb uint64) *AddressSpace {
	as := newSpace(g.t, g.as.f, dtb)
	as.soft, as.noExec, as.kernel = g.as.soft, g.as.noExec, g.as
	return as
}
