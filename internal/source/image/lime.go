package image

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"vmav.dev/vmav/internal/source"
)

// limeMagic opens each range of a LiME image (LiME, version 1: magic, version, first
// and last address, eight reserved bytes, then the memory).
const (
	limeMagic  = 0x4c694d45
	limeHeader = 32
	maxExtent  = 1 << 52 // bytes: the physical address space of x64
)

func parseLiME(r io.ReaderAt, size uint64) ([]segment, error) {
	var segs []segment
	for off := uint64(0); off < size; {
		var h [limeHeader]byte
		if _, err := r.ReadAt(h[:], int64(off)); err != nil {
			return nil, fmt.Errorf("read LiME header at %d: %w", off, err)
		}
		le := binary.LittleEndian
		if le.Uint32(h[:]) != limeMagic || le.Uint32(h[4:]) != 1 {
			return nil, fmt.Errorf("no LiME header of version 1 at %d", off)
		}
		first, last := le.Uint64(h[8:]), le.Uint64(h[16:])
		if last < first || last-first > maxExtent || len(segs) >= maxSegments {
			return nil, errors.New("a LiME range is out of bounds")
		}
		n := last - first + 1
		off += limeHeader
		// Only whole pages can be read; a part of a page at either end is left out.
		start := (first + source.PageSize - 1) &^ (source.PageSize - 1)
		end := (first + n) &^ (source.PageSize - 1)
		if end > start {
			segs = append(segs, segment{source.Range{Start: start, Size: end - start}, off + start - first})
		}
		off += n
	}
	return segs, nil
}
