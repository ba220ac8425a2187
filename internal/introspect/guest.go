package introspect

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
	"unicode/utf16"

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
	What string // "process 812 (win32.exe)", "driver at 0x…"
	Err  error
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
	g := &Guest{src: src, t: t, as: k.as,
		kernel: Kernel{Base: k.base, Size: k.size, Identity: k.id, Paging: "x64", Located: k.how}}
	if k.as.levels == 5 {
		g.kernel.Paging = "x64-la57"
	}
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
	rec := make([]byte, g.off.Process.Size)
	if err := g.as.Read(rec, eprocess); err != nil {
		return fmt.Errorf("read the System process at %#x: %w", eprocess, err)
	}
	v := record(rec)
	if pid, name := v.u64(g.off.Process.PID), v.text8(g.off.Process.Name); pid != 4 || name != "System" {
		return fmt.Errorf("the first process at %#x is pid %d %q, not System: the profile %s does not fit", eprocess, pid, name, g.kernel.Identity)
	}
	g.as = &AddressSpace{t: g.t, dtb: v.u64(g.off.Process.DTB) & pfnMask, levels: g.as.levels}
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
		mask, err := g.as.word(g.kernel.Base + g.off.Sym.MiState + uint64(g.off.InvalidPteMask))
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
	if g.as.Read(b[:], kuserShared+0x26c) != nil {
		return fmt.Sprint(g.kernel.Build)
	}
	le := binary.LittleEndian
	return fmt.Sprintf("%d.%d.%d", le.Uint32(b[:]), le.Uint32(b[4:]), g.kernel.Build)
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
	return &AddressSpace{t: g.t, dtb: dtb & pfnMask, levels: g.as.levels, soft: g.as.soft, kernel: g.as}
}

// word reads a 64-bit value.
func (as *AddressSpace) word(va uint64) (uint64, error) {
	b := wordPool.Get().(*[8]byte)
	defer wordPool.Put(b)
	if err := as.Read(b[:], va); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b[:]), nil
}

// record is the copy of one structure. An offset outside it reads as zero: the
// profile, not the guest, decides where fields lie, and profiles are checked.
type record []byte

func (r record) u64(off uint32) uint64 {
	if uint64(off)+8 > uint64(len(r)) {
		return 0
	}
	return binary.LittleEndian.Uint64(r[off:])
}

func (r record) u32(off uint32) uint32 {
	if uint64(off)+4 > uint64(len(r)) {
		return 0
	}
	return binary.LittleEndian.Uint32(r[off:])
}

func (r record) u16(off uint32) uint16 {
	if uint64(off)+2 > uint64(len(r)) {
		return 0
	}
	return binary.LittleEndian.Uint16(r[off:])
}

func (r record) u8(off uint32) uint8 {
	if uint64(off) >= uint64(len(r)) {
		return 0
	}
	return r[off]
}

// field reads an integer or bit field of up to eight bytes.
func (r record) field(f winstruct.Field) uint64 {
	switch f.Size {
	case 1:
		return f.Bits(uint64(r.u8(f.Offset)))
	case 2:
		return f.Bits(uint64(r.u16(f.Offset)))
	case 4:
		return f.Bits(uint64(r.u32(f.Offset)))
	}
	return f.Bits(r.u64(f.Offset))
}

// text8 reads a fixed array of characters up to its zero.
func (r record) text8(f winstruct.Field) string {
	end := min(uint64(f.Offset)+uint64(f.Size), uint64(len(r)))
	if uint64(f.Offset) >= end {
		return ""
	}
	s := r[f.Offset:end]
	for i, c := range s {
		if c == 0 {
			return string(s[:i])
		}
	}
	return string(s)
}

// time reads a FILETIME: 100 ns since 1601 in UTC. Zero, and what no system of ours
// can have seen, is the zero time.
func (r record) time(off uint32) time.Time {
	const unixEpoch = 116444736000000000
	t := r.u64(off)
	if t < unixEpoch || t > unixEpoch+200*365*24*3600*10_000_000 {
		return time.Time{}
	}
	t -= unixEpoch
	return time.Unix(int64(t/10_000_000), int64(t%10_000_000)*100).UTC()
}

// unicode reads the UNICODE_STRING at an offset of r, whose text lies in as.
func (r record) unicode(as *AddressSpace, off uint32) (string, error) {
	n, at := uint32(r.u16(off)), r.u64(off+8)
	return readUTF16(as, at, n)
}

// unicode32 is unicode for the 32-bit form.
func (r record) unicode32(as *AddressSpace, off uint32) (string, error) {
	n, at := uint32(r.u16(off)), uint64(r.u32(off+4))
	return readUTF16(as, at, n)
}

// readUTF16 reads n bytes of UTF-16. Half a surrogate pair becomes U+FFFD.
func readUTF16(as *AddressSpace, at uint64, n uint32) (string, error) {
	n &^= 1
	if n == 0 {
		return "", nil
	}
	if n > maxText {
		return "", fmt.Errorf("a string of %d bytes", n)
	}
	raw := make([]byte, n)
	if err := as.Read(raw, at); err != nil {
		return "", err
	}
	units := make([]uint16, n/2)
	for i := range units {
		units[i] = binary.LittleEndian.Uint16(raw[2*i:])
	}
	return string(utf16.Decode(units)), nil
}
