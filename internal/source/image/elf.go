package image

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"vmav.dev/vmav/internal/source"
)

// Bounds on the notes of one core: bytes in all, and vCPUs.
const (
	maxNotes = 16 << 20
	maxCPUs  = 4096
)

// parseELF reads the program headers of a core and the registers in its notes. The
// physical addresses of its segments are the guest's.
func parseELF(r io.ReaderAt, size uint64) (segs []segment, regs []source.Registers, err error) {
	f, err := elf.NewFile(io.NewSectionReader(r, 0, int64(size)))
	if err != nil {
		return nil, nil, fmt.Errorf("read ELF header: %w", err)
	}
	// For a guest in 32-bit mode QEMU writes a core for i386, in the form ELF32 if its
	// memory ends below 4 GiB. The registers have the same form in all of them.
	if f.Machine != elf.EM_X86_64 && f.Machine != elf.EM_386 || f.Type != elf.ET_CORE {
		return nil, nil, fmt.Errorf("it is an ELF %s for %s, not an x86 core", f.Type, f.Machine)
	}
	if len(f.Progs) > maxSegments {
		return nil, nil, fmt.Errorf("%d program headers", len(f.Progs))
	}
	left := uint64(maxNotes)
	for _, p := range f.Progs {
		switch p.Type {
		case elf.PT_LOAD:
			if n := p.Filesz &^ (source.PageSize - 1); n > 0 && p.Paddr%source.PageSize == 0 {
				segs = append(segs, segment{source.Range{Start: p.Paddr, Size: n}, p.Off})
			}
		case elf.PT_NOTE:
			if p.Filesz > left {
				return nil, nil, fmt.Errorf("more than %d bytes of notes", maxNotes)
			}
			left -= p.Filesz
			notes := make([]byte, p.Filesz)
			if _, err := r.ReadAt(notes, int64(p.Off)); err != nil {
				return nil, nil, fmt.Errorf("read notes: %w", err)
			}
			found, err := parseNotes(notes)
			if err != nil {
				return nil, nil, err
			}
			if regs = append(regs, found...); len(regs) > maxCPUs {
				return nil, nil, fmt.Errorf("more than %d vCPUs", maxCPUs)
			}
		}
	}
	return segs, regs, nil
}

// parseNotes collects the vCPU states of QEMU's notes.
func parseNotes(p []byte) ([]source.Registers, error) {
	le := binary.LittleEndian
	var out []source.Registers
	for len(p) >= 12 {
		name, desc, kind := uint64(le.Uint32(p)), uint64(le.Uint32(p[4:])), le.Uint32(p[8:])
		p = p[12:]
		nameLen, descLen := (name+3)&^3, (desc+3)&^3
		if nameLen > uint64(len(p)) || descLen > uint64(len(p))-nameLen {
			return nil, errors.New("its notes are cut off")
		}
		if kind == 0 && bytes.Equal(bytes.TrimRight(p[:name], "\x00"), []byte("QEMU")) {
			if r, ok := parseQEMUState(p[nameLen : nameLen+desc]); ok {
				r.CPU = len(out)
				out = append(out, r)
			}
		}
		p = p[nameLen+descLen:]
	}
	return out, nil
}

// parseQEMUState decodes QEMUCPUState (QEMU, target/i386/arch_dump.c): version, size,
// general registers, RIP, RFLAGS, ten segments, CR0 to CR4, and since QEMU 2.12 the
// kernel GS base.
func parseQEMUState(p []byte) (source.Registers, bool) {
	const segments, segmentSize = 8 + 18*8, 24
	const control = segments + 10*segmentSize
	if len(p) < control+5*8 {
		return source.Registers{}, false
	}
	le := binary.LittleEndian
	q := func(off int) uint64 { return le.Uint64(p[off:]) }
	seg := func(i int) source.Segment {
		at := segments + i*segmentSize
		return source.Segment{Selector: uint16(le.Uint32(p[at:])), Base: q(at + 16)}
	}
	r := source.Registers{RIP: q(8 + 16*8), RFLAGS: q(8 + 17*8), CS: seg(0), FS: seg(3), GS: seg(4), SS: seg(5),
		GDTBase: seg(8).Base, IDTBase: seg(9).Base, IDTLimit: le.Uint32(p[segments+9*segmentSize+4:]),
		CR0: q(control), CR2: q(control + 16), CR3: q(control + 24), CR4: q(control + 32)}
	// QEMU's order: rax rbx rcx rdx rsi rdi rsp rbp r8..r15.
	for i, to := range []int{0, 3, 1, 2, 6, 7, 4, 5} {
		r.GPR[to] = q(8 + 8*i)
	}
	for i := 8; i < 16; i++ {
		r.GPR[i] = q(8 + 8*i)
	}
	r.RSP = r.GPR[4]
	r.CPL = uint8(r.CS.Selector & 3)
	if len(p) >= control+6*8 {
		r.KernelGSBase = q(control + 40)
	}
	return r, true
}
