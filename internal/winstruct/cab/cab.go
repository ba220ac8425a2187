// Package cab reads cabinets with one file. Symbol servers keep a PDB compressed as
// NAME.pd_, which is such a cabinet.
//
// It decodes stored, MSZIP and LZX data. Quantum, and cabinets that continue in another
// one, are refused. Cabinets come from the network: the caller bounds all sizes, and a
// cabinet that contradicts itself is an error that wraps ErrCorrupt. The format is that of
// Microsoft's "Cabinet File Format" ([MS-CAB]) and "LZX DELTA Compression" ([MS-PATCH]), in
// its older form without deltas. The package imports no other package of the project.
package cab

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Test for these with errors.Is.
var (
	ErrNotCabinet  = errors.New("not a cabinet")
	ErrCorrupt     = errors.New("corrupt cabinet")
	ErrUnsupported = errors.New("cabinet of an unsupported form")
)

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

// Magic is the signature at the start of a cabinet.
const Magic = "MSCF"

const (
	headerSize = 36
	maxBlock   = 32 << 10 // bytes of one block of data, uncompressed
	maxPacked  = 48 << 10 // and compressed: MSZIP and LZX may grow what they cannot shrink
	maxName    = 256

	flagPrevious = 1
	flagNext     = 2
	flagReserve  = 4
)

// header has the needed parts of a cabinet's headers.
type header struct {
	dataReserve int // bytes in front of each block's data
	folderAt    uint32
	blocks      uint16
	kind        uint16 // of compression, with its parameters
	size        uint32 // of the file
	start       uint32 // of it in the folder
	name        string
}

// Extract writes the cabinet's first file to w and returns its name and its size in bytes.
// It fails before it has written more than most bytes.
func Extract(w io.Writer, r io.ReaderAt, most int64) (name string, size int64, err error) {
	h, err := readHeader(r)
	if err != nil {
		return "", 0, err
	}
	if int64(h.start)+int64(h.size) > most {
		return "", 0, fmt.Errorf("%w: a file of %d bytes, more than the %d that are allowed", ErrUnsupported, h.size, most)
	}
	d, err := newDecoder(h.kind)
	if err != nil {
		return "", 0, err
	}
	skip, left := int64(h.start), int64(h.size)
	at := int64(h.folderAt)
	for block := 0; left > 0; block++ {
		if block == int(h.blocks) {
			return "", 0, corrupt("%d bytes are missing behind the last block", left)
		}
		out, next, err := readBlock(r, at, h.dataReserve, d)
		if err != nil {
			return "", 0, fmt.Errorf("block %d: %w", block, err)
		}
		at = next
		if n := min(skip, int64(len(out))); n > 0 {
			out, skip = out[n:], skip-n
		}
		out = out[:min(left, int64(len(out)))]
		if _, err := w.Write(out); err != nil {
			return "", 0, err
		}
		left -= int64(len(out))
	}
	return h.name, int64(h.size), nil
}

// readAt fills a buffer. Reading beyond the cabinet's end is an error that wraps
// ErrCorrupt.
func readAt(r io.ReaderAt, n int, at int64) ([]byte, error) {
	p := make([]byte, n)
	if got, err := r.ReadAt(p, at); got < n {
		if err == nil || errors.Is(err, io.EOF) {
			return nil, corrupt("it ends at byte %d, within %d bytes at %d", at+int64(got), n, at)
		}
		return nil, err
	}
	return p, nil
}

func readHeader(r io.ReaderAt) (*header, error) {
	b, err := readAt(r, headerSize, 0)
	if err != nil {
		if errors.Is(err, ErrCorrupt) {
			return nil, fmt.Errorf("%w: shorter than a header", ErrNotCabinet)
		}
		return nil, err
	}
	if !bytes.HasPrefix(b, []byte(Magic)) {
		return nil, ErrNotCabinet
	}
	le := binary.LittleEndian
	files, folders, count, flags := le.Uint32(b[16:]), le.Uint16(b[26:]), le.Uint16(b[28:]), le.Uint16(b[30:])
	if b[25] != 1 {
		return nil, fmt.Errorf("%w: version %d.%d", ErrUnsupported, b[25], b[24])
	}
	if flags&(flagPrevious|flagNext) != 0 {
		return nil, fmt.Errorf("%w: part of a set", ErrUnsupported)
	}
	if folders == 0 || count == 0 {
		return nil, corrupt("%d folders, %d files", folders, count)
	}
	h, at, folderReserve := &header{}, int64(headerSize), 0
	if flags&flagReserve != 0 {
		b, err := readAt(r, 4, at)
		if err != nil {
			return nil, err
		}
		folderReserve, h.dataReserve = int(b[2]), int(b[3])
		at += 4 + int64(le.Uint16(b))
	}
	f, err := readAt(r, 16, int64(files))
	if err != nil {
		return nil, err
	}
	h.size, h.start = le.Uint32(f), le.Uint32(f[4:])
	folder := le.Uint16(f[8:])
	if folder >= folders {
		return nil, fmt.Errorf("%w: a file in folder %#x of %d", ErrUnsupported, folder, folders)
	}
	if b, err = readAt(r, 8, at+int64(folder)*int64(8+folderReserve)); err != nil {
		return nil, err
	}
	h.folderAt, h.blocks, h.kind = le.Uint32(b), le.Uint16(b[4:]), le.Uint16(b[6:])
	h.name, err = readName(r, int64(files)+16)
	return h, err
}

func readName(r io.ReaderAt, at int64) (string, error) {
	p := make([]byte, maxName)
	n, err := r.ReadAt(p, at)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	name, _, ok := bytes.Cut(p[:n], []byte{0})
	if !ok {
		return "", corrupt("a file name without an end")
	}
	return string(name), nil
}

// decoder turns the blocks of a folder into data, in their order.
type decoder interface {
	// block decodes one block into size bytes; the result is valid until the next.
	block(packed []byte, size int) ([]byte, error)
}

func newDecoder(kind uint16) (decoder, error) {
	switch kind & 0xf {
	case 0:
		return stored{}, nil
	case 1:
		return &mszip{}, nil
	case 3:
		return newLZX(uint(kind >> 8 & 0x1f))
	}
	return nil, fmt.Errorf("%w: compression %#x", ErrUnsupported, kind)
}

// readBlock reads and decodes the block at an offset, and returns where the next is.
func readBlock(r io.ReaderAt, at int64, reserve int, d decoder) ([]byte, int64, error) {
	b, err := readAt(r, 8, at)
	if err != nil {
		return nil, 0, err
	}
	le := binary.LittleEndian
	sum, n, size := le.Uint32(b), int(le.Uint16(b[4:])), int(le.Uint16(b[6:]))
	if size == 0 || size > maxBlock || n > maxPacked {
		return nil, 0, corrupt("%d bytes of %d", n, size)
	}
	data, err := readAt(r, reserve+n, at+8)
	if err != nil {
		return nil, 0, err
	}
	packed := data[reserve:]
	// The sum is over the data, then over the two sizes; 0 stands for none.
	if sum != 0 && sum != checksum(b[4:8], checksum(packed, 0)) && sum != checksum(b[4:8], checksum(data, 0)) {
		return nil, 0, corrupt("its checksum is not that of its data")
	}
	out, err := d.block(packed, size)
	return out, at + 8 + int64(len(data)), err
}

// checksum is the exclusive or of 32-bit words; the last bytes come in reverse.
func checksum(p []byte, sum uint32) uint32 {
	for ; len(p) >= 4; p = p[4:] {
		sum ^= binary.LittleEndian.Uint32(p)
	}
	var last uint32
	for _, b := range p {
		last = last<<8 | uint32(b)
	}
	return sum ^ last
}

type stored struct{}

func (stored) block(packed []byte, size int) ([]byte, error) {
	if len(packed) != size {
		return nil, corrupt("%d bytes are stored as %d", size, len(packed))
	}
	return packed, nil
}

// mszip is deflate in blocks: each starts with "CK" and may refer back into the one
// before.
type mszip struct {
	r   io.ReadCloser
	out []byte
}

func (m *mszip) block(packed []byte, size int) ([]byte, error) {
	if len(packed) < 2 || packed[0] != 'C' || packed[1] != 'K' {
		return nil, corrupt("no MSZIP signature")
	}
	src := bytes.NewReader(packed[2:])
	if m.r == nil {
		m.r = flate.NewReader(src)
	} else if err := m.r.(flate.Resetter).Reset(src, m.out); err != nil {
		return nil, err
	}
	out := make([]byte, size)
	if _, err := io.ReadFull(m.r, out); err != nil {
		return nil, corrupt("MSZIP: %v", err)
	}
	m.out = out
	return out, nil
}
