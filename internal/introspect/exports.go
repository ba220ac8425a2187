package introspect

import (
	"encoding/binary"
	"fmt"
	"strings"
)

const maxExports = 1 << 14 // names; kernels have some 3,000

// exportTable finds names in the export directory of the kernel image: the only symbols
// that an image carries itself.
type exportTable struct {
	*peHeader
	names                       uint32 // how many
	functions, nameRVAs, ordRVA uint32 // RVAs of the three tables
	entries                     uint32 // of functions
}

// readExportDirectory reads an image's IMAGE_EXPORT_DIRECTORY.
func readExportDirectory(h *peHeader) (record, error) {
	rva, _, ok := h.directory(dirExport, 40)
	if !ok {
		return record{}, fmt.Errorf("image at %#x exports nothing", h.base)
	}
	dir := h.as.newRecord(40)
	if err := h.read(dir.b, uint64(rva)); err != nil {
		return record{}, fmt.Errorf("read export directory: %w", err)
	}
	return dir, nil
}

// readExports reads the export directory of the image at base.
func readExports(as *AddressSpace, base uint64) (*exportTable, error) {
	h, err := readPEHeader(as, base)
	if err != nil {
		return nil, err
	}
	dir, err := readExportDirectory(h)
	if err != nil {
		return nil, err
	}
	e := &exportTable{peHeader: h, entries: dir.u32(20), names: dir.u32(24), functions: dir.u32(28), nameRVAs: dir.u32(32), ordRVA: dir.u32(36)}
	if e.names == 0 || e.names > maxExports || e.entries > maxExports {
		return nil, fmt.Errorf("an export directory with %d names", e.names)
	}
	return e, nil
}

// find returns the RVA of an exported name, or 0 if there is none. The names are sorted.
func (e *exportTable) find(name string) (uint64, error) {
	low, high := uint32(0), e.names
	for low < high {
		mid := (low + high) / 2
		got, err := e.name(mid, len(name)+1)
		if err != nil {
			return 0, fmt.Errorf("read exported name %d: %w", mid, err)
		}
		switch c := strings.Compare(got, name); {
		case c < 0:
			low = mid + 1
		case c > 0:
			high = mid
		default:
			return e.function(mid)
		}
	}
	return 0, nil
}

// name reads the start of a name, at most n bytes.
func (e *exportTable) name(i uint32, n int) (string, error) {
	var rva [4]byte
	if err := e.read(rva[:], uint64(e.nameRVAs)+4*uint64(i)); err != nil {
		return "", err
	}
	text := make([]byte, n)
	if err := e.read(text, uint64(binary.LittleEndian.Uint32(rva[:]))); err != nil {
		return "", err
	}
	bare, _, _ := strings.Cut(string(text), "\x00")
	return bare, nil
}

// function returns the RVA of the function that the i-th name belongs to.
func (e *exportTable) function(i uint32) (uint64, error) {
	var b [4]byte
	if err := e.read(b[:2], uint64(e.ordRVA)+2*uint64(i)); err != nil {
		return 0, err
	}
	ordinal := binary.LittleEndian.Uint16(b[:])
	if uint32(ordinal) >= e.entries {
		return 0, fmt.Errorf("ordinal %d of %d", ordinal, e.entries)
	}
	if err := e.read(b[:], uint64(e.functions)+4*uint64(ordinal)); err != nil {
		return 0, err
	}
	rva := binary.LittleEndian.Uint32(b[:])
	if rva >= e.size {
		return 0, fmt.Errorf("an export at RVA %#x", rva)
	}
	return uint64(rva), nil
}
