package introspect

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
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

// Problem says what could not be read. It does not end the enumeration in which it came up,
// but the object it names is incomplete.
type Problem struct {
	What    string // "process 812 (win32.exe)", "driver at 0x…"
	Err     error
	Process Identity // the process that it concerns; zero if none
}

// Error implements error.
func (p Problem) Error() string { return p.What + ": " + p.Err.Error() }

// Unwrap returns the cause, for errors.Is and errors.As.
func (p Problem) Unwrap() error { return p.Err }

// Guest is a Windows guest whose kernel has been found and whose build is known. It is safe
// for concurrent use. It does not own its source: the caller closes that.
type Guest struct {
	src    source.Source
	t      *tables
	kernel Kernel
	as     *AddressSpace // the System process's
	off    *Offsets
}

// Open finds the kernel of the guest behind src and the profile of its build. The error
// wraps ErrNotWindows, ErrBooting or *winstruct.MissingError where that is the reason. A
// MissingError names the Windows build that was found.
//
// If profiles also implements Neighbours and has no profile of the build, Open tries the
// offsets of the nearest builds (see Neighbours). Kernel.Inferred is then set.
func Open(ctx context.Context, src source.Source, profiles winstruct.Finder) (*Guest, error) {
	t := newTables(src)
	k, err := locate(ctx, t)
	if err != nil {
		return nil, err
	}
	return openKernel(ctx, src, t, k, profiles)
}

// OpenAt does what Open does for a guest whose kernel was found before. It looks at that
// place first. If no kernel is there, it searches as Open does.
func OpenAt(ctx context.Context, src source.Source, profiles winstruct.Finder, at Place) (*Guest, error) {
	t := newTables(src)
	if k := kernelAt(t, at); k != nil {
		return openKernel(ctx, src, t, k, profiles)
	}
	return Open(ctx, src, profiles)
}

// openKernel finds the profile of a kernel's build, and the System process.
func openKernel(ctx context.Context, src source.Source, t *tables, k *located, profiles winstruct.Finder) (*Guest, error) {
	g := &Guest{src: src, t: t, as: k.as,
		kernel: Kernel{Base: k.base, Size: k.size, Identity: k.id, Paging: k.as.f.name, Bits: 8 * int(k.as.f.ptr), Located: k.how}}
	g.noteOpaque()
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
	if err := g.adoptSystem(); err != nil {
		return nil, err
	}
	if err := g.proveSession(ctx); err != nil {
		return nil, err
	}
	return g, nil
}

// Identify finds the kernel of the guest behind src and returns the identity of its build.
// It needs no profile. The errors are those of Open.
func Identify(ctx context.Context, src source.Source) (winstruct.Identity, error) {
	k, err := locate(ctx, newTables(src))
	if err != nil {
		return winstruct.Identity{}, err
	}
	return k.id, nil
}

// adoptSystem finds the System process and switches to its page tables. Those that the
// kernel was found with may belong to any process.
func (g *Guest) adoptSystem() error {
	head := g.kernel.Base + g.off.Sym.ActiveProcessHead
	first, err := g.as.word(head)
	if err != nil {
		return fmt.Errorf("read PsActiveProcessHead: %w", err)
	}
	if first == 0 || first == head {
		return fmt.Errorf("%w: its kernel has no process yet", ErrBooting)
	}
	eprocess := first - uint64(g.off.Process.Links)
	v, err := g.as.readRecord(eprocess, g.off.Process.Size)
	if err != nil {
		return fmt.Errorf("read the System process at %#x: %w", eprocess, err)
	}
	if pid, name := v.ptr(g.off.Process.PID), v.text8(g.off.Process.Name); pid != 4 || name != "System" {
		return fmt.Errorf("the first process at %#x is pid %d %q, not System: the profile %s does not fit", eprocess, pid, name, g.kernel.Identity)
	}
	opaque := g.as.soft.opaque
	g.as = newSpace(g.t, g.as.f, v.ptr(g.off.Process.DTB))
	g.as.soft.opaque = opaque
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
	g.noteOpaque()
	g.kernel.Version, g.kernel.Release = g.version(), g.release()
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

// noteOpaque has no entry but a valid one used on builds from opaqueSince on.
func (g *Guest) noteOpaque() {
	if !g.as.soft.opaque && max(g.kernel.Build, g.buildShared()) >= opaqueSince {
		g.as.soft.opaque = true
		g.kernel.Unproven = append(slices.Clip(g.kernel.Unproven), unprovenPTEs)
	}
}

// buildShared returns the build number in KUSER_SHARED_DATA, or 0 if there is none: before
// Windows 10 it has no such member. The member is at 0x260 (WDK, ntddk.h).
func (g *Guest) buildShared() uint32 {
	var b [0x14]byte // up to NtMinorVersion
	if g.as.Read(b[:], g.as.f.kuser+0x260) != nil || binary.LittleEndian.Uint32(b[0xc:]) < 10 {
		return 0
	}
	return binary.LittleEndian.Uint32(b[:])
}

// version returns "major.minor.build". Major and minor are read from KUSER_SHARED_DATA:
// NtMajorVersion is at 0x26c and NtMinorVersion at 0x270 on every build.
func (g *Guest) version() string {
	var b [8]byte
	if g.as.Read(b[:], g.as.f.kuser+0x26c) != nil {
		return fmt.Sprint(g.kernel.Build)
	}
	le := binary.LittleEndian
	return fmt.Sprintf("%d.%d.%d", le.Uint32(b[:]), le.Uint32(b[4:]), g.kernel.Build)
}

// Time reads the guest's clock: SystemTime of KUSER_SHARED_DATA, a KSYSTEM_TIME at 0x14 on
// every build (WDK, ntddk.h). The structure holds its upper half twice, and it is read
// again until both agree. The guest can set any time it likes. The result is the zero time
// if the guest's value is no plausible time.
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

// usesNoExec reports whether the guest sets the no-execute bit of page table entries, so
// that an entry without it marks code. A 32-bit guest may leave that bit unused.
// KUSER_SHARED_DATA.ProcessorFeatures (at 0x274) says so at index PF_NX_ENABLED (Windows
// SDK, winnt.h).
func (g *Guest) usesNoExec() bool {
	const pfNXEnabled = 12
	if !g.as.f.noExec || g.as.f.wide() {
		return g.as.f.noExec
	}
	var enabled [1]byte
	return g.as.Read(enabled[:], g.as.f.kuser+0x274+pfNXEnabled) == nil && enabled[0] != 0
}

// Kernel returns what is known of the guest's kernel.
func (g *Guest) Kernel() Kernel { return g.kernel }

// Memory returns the address space of the System process, which is the kernel's own.
func (g *Guest) Memory() *AddressSpace { return g.as }

// Refresh drops all cached page tables, so that the next read sees the guest's present
// ones.
func (g *Guest) Refresh() { g.t.flush() }

// WithSource returns the same guest, read through another source. The two share no cached page
// tables. It serves to read the present content of memory past a source that caches pages.
func (g *Guest) WithSource(src source.Source) *Guest {
	n := *g
	n.src, n.t = src, newTables(src)
	as := *g.as
	as.t = n.t
	n.as = &as
	return &n
}

// Space returns the address space that a process has in kernel mode. Its user half equals
// that of user mode, except that KVA shadow maps it as non-executable.
func (g *Guest) Space(p *Process) *AddressSpace { return g.space(p.DTB) }

// UserSpace returns the address space that a process has in user mode.
func (g *Guest) UserSpace(p *Process) *AddressSpace {
	if p.UserDTB != 0 {
		return g.space(p.UserDTB)
	}
	return g.space(p.DTB)
}

// space returns the address space of the page tables at dtb.
func (g *Guest) space(dtb uint64) *AddressSpace {
	as := newSpace(g.t, g.as.f, dtb)
	as.soft, as.noExec, as.kernel = g.as.soft, g.as.noExec, g.as
	return as
}
