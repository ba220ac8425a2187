package ntguest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sort"
)

// PhysRun is a piece of guest-physical memory: Data lies at Addr.
type PhysRun struct {
	Addr uint64
	Data []byte
}

const (
	pageSize = 4096

	// firmwareEnd is where memory that firmware uses while it starts ends.
	firmwareEnd = 0x100000

	// elfGap is the longest run of absent bytes that is filled with zeros
	// rather than given a program header of its own; QEMU keeps one ROM object
	// for each header and sorts them by insertion.
	elfGap = 16 * pageSize

	// elfMaxHeaders bounds the program headers; the ELF field has 16 bits and
	// PN_XNUM is reserved.
	elfMaxHeaders = 4096
)

// WriteKernelELF writes runs as an ELF64 executable that QEMU's -kernel option
// and libvirt's <kernel> element load in place: every run becomes a PT_LOAD at
// its physical address, and a Xen PHYS32_ENTRY note (the PVH boot protocol)
// names entry32, the physical address of 32-bit code. Runs may come in any
// order; they must not overlap nor touch the first MiB, which is the firmware's.
func WriteKernelELF(w io.Writer, runs []PhysRun, entry32 uint32) error {
	segs, err := mergeRuns(runs)
	if err != nil {
		return fmt.Errorf("write kernel ELF: %w", err)
	}

	const headerSize, phdrSize, noteSize = 64, 56, 24
	phnum := len(segs) + 1
	noteOff := uint64(headerSize + phnum*phdrSize)
	dataOff := (noteOff + noteSize + pageSize - 1) &^ (pageSize - 1)

	var head bytes.Buffer
	le := binary.LittleEndian
	put := func(v any) { _ = binary.Write(&head, le, v) } // a bytes.Buffer does not fail
	put([16]byte{0x7f, 'E', 'L', 'F', 2, 1, 1})
	put([]uint16{2, 62}) // ET_EXEC, EM_X86_64
	put(uint32(1))
	put([]uint64{uint64(entry32), headerSize, 0})
	put(uint32(0))
	put([]uint16{headerSize, phdrSize, uint16(phnum), 64, 0, 0})

	put([]uint32{4, 4}) // PT_NOTE, PF_R
	put([]uint64{noteOff, 0, 0, noteSize, noteSize, 4})
	off := dataOff
	for _, s := range segs {
		size := s.end - s.start
		put([]uint32{1, 7}) // PT_LOAD, PF_RWX
		put([]uint64{off, s.start, s.start, size, size, pageSize})
		off += size
	}

	put([]uint32{4, 8, 18}) // sizes of name and descriptor, XEN_ELFNOTE_PHYS32_ENTRY
	head.WriteString("Xen\x00")
	put(uint64(entry32)) // QEMU reads a 64-bit word from an ELF64
	head.Write(make([]byte, dataOff-uint64(head.Len())))
	if _, err := w.Write(head.Bytes()); err != nil {
		return fmt.Errorf("write kernel ELF header: %w", err)
	}
	zeros := make([]byte, elfGap)
	for _, s := range segs {
		at := s.start
		for _, r := range s.runs {
			if _, err := w.Write(zeros[:r.Addr-at]); err != nil {
				return fmt.Errorf("write kernel ELF segment at %#x: %w", s.start, err)
			}
			if _, err := w.Write(r.Data); err != nil {
				return fmt.Errorf("write kernel ELF segment at %#x: %w", s.start, err)
			}
			at = r.Addr + uint64(len(r.Data))
		}
	}
	return nil
}

// elfSegment is one PT_LOAD: runs in order with gaps of at most elfGap.
type elfSegment struct {
	start, end uint64
	runs       []PhysRun
}

// mergeRuns sorts runs and joins neighbours until the headers are few enough
// for short gaps; it fails when runs overlap.
func mergeRuns(runs []PhysRun) ([]elfSegment, error) {
	if len(runs) == 0 {
		return nil, errors.New("no memory to load")
	}
	sorted := append([]PhysRun(nil), runs...)
	sort.Slice(sorted, func(i, j int) bool { return sorted[i].Addr < sorted[j].Addr })
	var segs []elfSegment
	for _, r := range sorted {
		if len(r.Data) == 0 {
			continue
		}
		end := r.Addr + uint64(len(r.Data))
		if r.Addr < firmwareEnd || end < r.Addr {
			return nil, fmt.Errorf("run at %#x, %d bytes, is not above the first MiB", r.Addr, len(r.Data))
		}
		if n := len(segs); n > 0 {
			last := &segs[n-1]
			if r.Addr < last.end {
				return nil, fmt.Errorf("run at %#x overlaps the one that ends at %#x", r.Addr, last.end)
			}
			if r.Addr-last.end <= elfGap {
				last.runs = append(last.runs, r)
				last.end = end
				continue
			}
		}
		segs = append(segs, elfSegment{start: r.Addr, end: end, runs: []PhysRun{r}})
	}
	if len(segs) > elfMaxHeaders {
		return nil, fmt.Errorf("%d separate segments, at most %d", len(segs), elfMaxHeaders)
	}
	return segs, nil
}
