package window

import (
	"encoding/binary"
	"fmt"
	"sort"

	"golang.org/x/sys/unix"

	"vmav.dev/vmav/internal/source"
)

// Guest is guest memory that another process shares (source.Sharer), mapped read-only. The
// mapping lasts until this process ends. A nil Guest has no memory.
type Guest struct {
	runs []run // ascending
}

type run struct {
	source.Range
	mem []byte
}

// Map maps the ranges of guest memory in a shared file. A range that cannot be mapped is
// left out, which only costs speed. The descriptor stays the caller's and may be closed
// afterwards.
func Map(fd int, shared []source.Shared) *Guest {
	g := &Guest{}
	for _, s := range shared {
		skip := s.Offset % source.PageSize // a file's header need not be whole pages
		if s.Size == 0 || s.Size+skip < s.Size || int64(s.Size+skip) < 0 || s.Start+s.Size < s.Start {
			continue
		}
		mem, err := unix.Mmap(fd, int64(s.Offset-skip), int(s.Size+skip), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_NORESERVE)
		if err == nil {
			g.runs = append(g.runs, run{s.Range, mem[skip:]})
		}
	}
	sort.Slice(g.runs, func(i, j int) bool { return g.runs[i].Start < g.runs[j].Start })
	return g
}

// Read fills p from guest-physical address addr and reports whether it could. It cannot if
// the range is not mapped here in one piece, or if a page of it is gone.
func (g *Guest) Read(p []byte, addr uint64) bool {
	if g == nil {
		return false
	}
	i := sort.Search(len(g.runs), func(i int) bool { return g.runs[i].End() > addr })
	if i == len(g.runs) {
		return false
	}
	r := &g.runs[i]
	if addr < r.Start || uint64(len(p)) > r.End()-addr {
		return false
	}
	return source.CopyView(p, r.mem[addr-r.Start:][:len(p)])
}

// sharedSize is the encoded size of one source.Shared, in bytes: address, size and offset.
const sharedSize = 24

// EncodeRanges encodes the places of shared guest memory at the beginning of mem. It reports whether
// there was room.
func EncodeRanges(mem []byte, shared []source.Shared) bool {
	if len(mem) < 4+sharedSize*len(shared) {
		return false
	}
	binary.LittleEndian.PutUint32(mem, uint32(len(shared)))
	b := mem[4:4]
	for _, s := range shared {
		b = binary.LittleEndian.AppendUint64(b, s.Start)
		b = binary.LittleEndian.AppendUint64(b, s.Size)
		b = binary.LittleEndian.AppendUint64(b, s.Offset)
	}
	return true
}

// DecodeRanges decodes what EncodeRanges wrote. The content of mem is not trusted.
func DecodeRanges(mem []byte) ([]source.Shared, error) {
	if len(mem) < 4 {
		return nil, fmt.Errorf("no runs of guest memory in %d bytes", len(mem))
	}
	n := uint64(binary.LittleEndian.Uint32(mem))
	if mem = mem[4:]; n > uint64(len(mem))/sharedSize {
		return nil, fmt.Errorf("%d runs of guest memory in %d bytes", n, len(mem))
	}
	out := make([]source.Shared, n)
	for i := range out {
		b := mem[sharedSize*i:]
		out[i] = source.Shared{Range: source.Range{Start: binary.LittleEndian.Uint64(b), Size: binary.LittleEndian.Uint64(b[8:])},
			Offset: binary.LittleEndian.Uint64(b[16:])}
	}
	return out, nil
}
