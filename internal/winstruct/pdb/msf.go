package pdb

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Test for these with errors.Is.
var (
	ErrNotPDB      = errors.New("not a PDB")
	ErrCorrupt     = errors.New("corrupt PDB")
	ErrUnsupported = errors.New("PDB of an unsupported form")
)

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

const (
	msfMagic  = "Microsoft C/C++ MSF 7.00\r\n\x1aDS\x00\x00\x00"
	msfMagic2 = "Microsoft C/C++ program database 2.00\r\n\x1aJG"
	superSize = 56 // bytes: magic and six words

	maxStreams   = 1 << 16
	maxDirectory = 64 << 20 // bytes; a file of 4 GiB in blocks of 4 KiB needs 4 MiB
	noStream     = 0xffff   // a stream number that refers to none
	nilStream    = ^uint32(0)
)

// msf is the container: numbered streams, each a list of blocks.
type msf struct {
	r         io.ReaderAt
	blockSize uint32
	sizes     []uint32 // bytes of each stream
	starts    []uint32 // index of each stream's first block in blocks
	blocks    []uint32 // block numbers
}

// openMSF reads the superblock and the directory of streams. It ignores the map of free
// blocks, which a reader does not need.
func openMSF(r io.ReaderAt, size int64) (*msf, error) {
	var super [superSize]byte
	if _, err := r.ReadAt(super[:], 0); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%w: shorter than a superblock", ErrNotPDB)
		}
		return nil, err
	}
	if bytes.HasPrefix(super[:], []byte(msfMagic2)) {
		return nil, fmt.Errorf("%w: container 2.00 (JG), made before 1999", ErrUnsupported)
	}
	if !bytes.HasPrefix(super[:], []byte(msfMagic)) {
		return nil, fmt.Errorf("%w: no MSF 7.00 signature", ErrNotPDB)
	}
	le := binary.LittleEndian
	f := &msf{r: r, blockSize: le.Uint32(super[32:])}
	count, dirSize, mapBlock := le.Uint32(super[40:]), le.Uint32(super[44:]), le.Uint32(super[52:])
	if f.blockSize < 512 || f.blockSize > 1<<16 || f.blockSize&(f.blockSize-1) != 0 {
		return nil, corrupt("blocks of %d bytes", f.blockSize)
	}
	if uint64(count)*uint64(f.blockSize) > uint64(size) {
		return nil, corrupt("%d blocks of %d bytes in a file of %d: it is cut off", count, f.blockSize, size)
	}
	if dirSize < 4 || dirSize > maxDirectory || uint64(dirSize) > uint64(size) {
		return nil, corrupt("a stream directory of %d bytes", dirSize)
	}
	// The block map lists the directory's blocks; it may run over several blocks.
	n := f.blocksOf(dirSize)
	if mapBlock == 0 || uint64(mapBlock)+uint64(f.blocksOf(4*n)) > uint64(count) {
		return nil, corrupt("the block map at block %d of %d", mapBlock, count)
	}
	raw := make([]byte, 4*n)
	if _, err := r.ReadAt(raw, int64(mapBlock)*int64(f.blockSize)); err != nil {
		return nil, fmt.Errorf("read block map: %w", err)
	}
	dir := &Stream{f: f, size: dirSize, blocks: words(raw)}
	if err := checkBlocks(dir.blocks, count); err != nil {
		return nil, fmt.Errorf("stream directory: %w", err)
	}
	raw = make([]byte, dirSize)
	if _, err := dir.ReadAt(raw, 0); err != nil {
		return nil, fmt.Errorf("read stream directory: %w", err)
	}
	return f, f.parseDirectory(words(raw), count)
}

// parseDirectory decodes the directory: the number of streams, their sizes, their blocks.
func (f *msf) parseDirectory(dir []uint32, count uint32) error {
	n := dir[0]
	if n > maxStreams || uint64(n) > uint64(len(dir)-1) {
		return corrupt("%d streams in a directory of %d words", n, len(dir))
	}
	f.sizes, f.blocks = dir[1:1+n], dir[1+n:]
	f.starts = make([]uint32, n)
	at := uint64(0)
	for i, size := range f.sizes {
		f.starts[i] = uint32(at)
		if size == nilStream {
			f.sizes[i] = 0
			continue
		}
		at += uint64(f.blocksOf(size))
		if at > uint64(len(f.blocks)) {
			return corrupt("stream %d of %d bytes has more blocks than the directory lists", i, size)
		}
	}
	if err := checkBlocks(f.blocks[:at], count); err != nil {
		return err
	}
	return nil
}

func checkBlocks(blocks []uint32, count uint32) error {
	for _, b := range blocks {
		if b >= count {
			return corrupt("block %d of %d", b, count)
		}
	}
	return nil
}

func (f *msf) blocksOf(size uint32) uint32 {
	return uint32((uint64(size) + uint64(f.blockSize) - 1) / uint64(f.blockSize))
}

// words reads little-endian 32-bit words and drops an incomplete last one.
func words(raw []byte) []uint32 {
	out := make([]uint32, len(raw)/4)
	for i := range out {
		out[i] = binary.LittleEndian.Uint32(raw[4*i:])
	}
	return out
}

// stream returns a stream by its number.
func (f *msf) stream(n uint32) (*Stream, error) {
	if n >= uint32(len(f.sizes)) {
		return nil, corrupt("stream %d of %d", n, len(f.sizes))
	}
	start, size := f.starts[n], f.sizes[n]
	return &Stream{f: f, size: size, blocks: f.blocks[start : start+f.blocksOf(size)]}, nil
}

// Stream is one stream of the container. It implements io.ReaderAt.
type Stream struct {
	f      *msf
	size   uint32
	blocks []uint32
}

// Size is the stream's length in bytes.
func (s *Stream) Size() int64 { return int64(s.size) }

// ReadAt implements io.ReaderAt.
func (s *Stream) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= int64(s.size) {
		return 0, io.EOF
	}
	want := len(p)
	p = p[:min(int64(len(p)), int64(s.size)-off)]
	n, bs := 0, int64(s.f.blockSize)
	for len(p) > 0 {
		at := off % bs
		chunk := p[:min(int64(len(p)), bs-at)]
		got, err := s.f.r.ReadAt(chunk, int64(s.blocks[off/bs])*bs+at)
		n += got
		if got < len(chunk) {
			if err == nil || errors.Is(err, io.EOF) {
				err = corrupt("the file ends within block %d", s.blocks[off/bs])
			}
			return n, err
		}
		p, off = p[len(chunk):], off+int64(len(chunk))
	}
	if n < want {
		return n, io.EOF
	}
	return n, nil
}

// bytes reads [off, off+n) of the stream.
func (s *Stream) bytes(off, n uint32) ([]byte, error) {
	if uint64(off)+uint64(n) > uint64(s.size) {
		return nil, corrupt("%d bytes at %d of a stream of %d", n, off, s.size)
	}
	// A block can be listed more than once, so the caller bounds what is read.
	p := make([]byte, n)
	if n == 0 {
		return p, nil
	}
	_, err := s.ReadAt(p, int64(off))
	return p, err
}
