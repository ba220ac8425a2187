package image

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"sync"

	"golang.org/x/sys/unix"

	"vmav.dev/vmav/internal/source"
)

// segment is a run of guest memory in the file.
type segment struct {
	source.Range
	offset uint64 // in the file
}

// Image is guest memory in a file. It implements source.Source and source.Sharer.
type Image struct {
	name     string
	form     string
	segments []segment // ascending, without overlap
	ranges   []source.Range
	regs     []source.Registers

	mu     sync.RWMutex // held for reading while the file is in use
	file   *os.File
	closed bool
}

// maxSegments bounds the ranges of one file; real ones have a few dozen.
const maxSegments = 1 << 16

// Open opens a memory image of any known form. The caller closes it.
func Open(path string) (*Image, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	im := &Image{name: filepath.Base(path), file: f}
	if err := im.recognise(); err != nil {
		f.Close()
		return nil, fmt.Errorf("open memory image %s: %w", path, err)
	}
	return im, nil
}

func (im *Image) recognise() error {
	st, err := im.file.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("it is a %s, not a file", kindOf(st.Mode()))
	}
	size := uint64(st.Size())
	var head [64]byte
	n, err := im.file.ReadAt(head[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	switch {
	case n >= 8 && string(head[:8]) == "KDUMP   ":
		return errors.New("it is a compressed kdump; write it with virsh dump --memory-only --format elf")
	case n >= 8 && string(head[:8]) == "makedump":
		return errors.New("it is a flattened kdump; write it with virsh dump --memory-only --format elf")
	case n >= 8 && (string(head[:8]) == "PAGEDU64" || string(head[:8]) == "PAGEDUMP"):
		return errors.New("it is a Windows crash dump, a form that is not read yet")
	case n >= 4 && string(head[:4]) == "\x7fELF":
		im.form = "ELF core"
		im.segments, im.regs, err = parseELF(im.file, size)
	case n >= 32 && binary.LittleEndian.Uint32(head[:]) == limeMagic:
		im.form = "LiME"
		im.segments, err = parseLiME(im.file, size)
	default:
		im.form = "raw"
		if size < source.PageSize {
			return fmt.Errorf("its %d bytes are less than a page", size)
		}
		im.segments = []segment{{source.Range{Size: size &^ (source.PageSize - 1)}, 0}}
	}
	if err != nil {
		return err
	}
	return im.check(size)
}

func kindOf(m os.FileMode) string {
	if m.IsDir() {
		return "directory"
	}
	return "special file"
}

// check sorts the segments, and rejects overlaps and segments that are not in the file.
func (im *Image) check(size uint64) error {
	sort.Slice(im.segments, func(i, j int) bool { return im.segments[i].Start < im.segments[j].Start })
	var end uint64
	for _, s := range im.segments {
		switch {
		case s.Start+s.Size < s.Start || s.offset+s.Size < s.offset:
			return fmt.Errorf("its range at %#x wraps around", s.Start)
		case s.offset+s.Size > size:
			return fmt.Errorf("it is cut off: the range at %#x ends at %d of %d bytes", s.Start, s.offset+s.Size, size)
		case s.Start < end:
			return fmt.Errorf("its ranges overlap at %#x", s.Start)
		}
		end = s.End()
		im.ranges = append(im.ranges, s.Range)
	}
	if len(im.ranges) == 0 {
		return errors.New("it holds no memory")
	}
	return nil
}

// find returns the segment that holds addr.
func (im *Image) find(addr uint64) (segment, bool) {
	i := sort.Search(len(im.segments), func(i int) bool { return im.segments[i].End() > addr })
	if i == len(im.segments) || addr < im.segments[i].Start {
		return segment{}, false
	}
	return im.segments[i], true
}

// ReadPhys implements source.Source.
func (im *Image) ReadPhys(p []byte, addr uint64) error {
	im.mu.RLock()
	defer im.mu.RUnlock()
	if im.closed {
		return source.ErrClosed
	}
	start, size := addr, len(p)
	for len(p) > 0 {
		s, ok := im.find(addr)
		if !ok {
			return &source.AccessError{Addr: start, Size: size, Err: source.ErrHole}
		}
		n := min(uint64(len(p)), s.End()-addr)
		if _, err := im.file.ReadAt(p[:n], int64(s.offset+addr-s.Start)); err != nil {
			if errors.Is(err, io.EOF) {
				err = errors.New("the file was truncated while it was read")
			}
			return &source.AccessError{Addr: start, Size: size, Err: err}
		}
		p, addr = p[n:], addr+n
	}
	return nil
}

// Share implements source.Sharer.
func (im *Image) Share() (*os.File, []source.Shared, error) {
	im.mu.RLock()
	defer im.mu.RUnlock()
	if im.closed {
		return nil, nil, source.ErrClosed
	}
	fd, err := unix.FcntlInt(im.file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("share memory image %s: %w", im.name, err)
	}
	runs := make([]source.Shared, len(im.segments))
	for i, s := range im.segments {
		runs[i] = source.Shared{Range: s.Range, Offset: s.offset}
	}
	return os.NewFile(uintptr(fd), im.name), runs, nil
}

// Ranges implements source.Source.
func (im *Image) Ranges() []source.Range { return im.ranges }

// Registers implements source.Source. Only ELF cores have registers, in their notes.
func (im *Image) Registers(context.Context) ([]source.Registers, error) {
	if len(im.regs) == 0 {
		return nil, source.ErrNoRegisters
	}
	return im.regs, nil
}

// Info implements source.Source.
func (im *Image) Info() source.Info {
	return source.Info{Kind: source.KindImage, Name: im.name, Form: im.form}
}

// Close implements source.Source. It waits for reads that are under way.
func (im *Image) Close() error {
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.closed {
		return nil
	}
	im.closed = true
	return im.file.Close()
}
