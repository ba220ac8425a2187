package pe

import (
	"fmt"
	"strconv"
	"strings"
)

// ImageFromMapped makes an image from a mapped form that another tool saved. mapped begins
// at the address base and is padded to whole pages. holes are the byte ranges that the tool
// could not read; every page that they touch becomes absent. The bytes are copied only if
// they must be padded or cleared; else the image shares them with mapped.
func ImageFromMapped(name string, mapped []byte, base uint64, holes []Range) (*Image, error) {
	if len(mapped) == 0 {
		return nil, fmt.Errorf("take mapped image %q: no bytes: %w", name, ErrHeaders)
	}
	if base%PageSize != 0 {
		return nil, fmt.Errorf("take mapped image %q: base %#x is not on a page: %w", name, base, ErrHeaders)
	}
	n := int(alignUp(uint64(len(mapped)), PageSize))
	img := &Image{Name: name, Base: base, Mem: mapped, Pages: make([]Origin, n/PageSize)}
	if n != len(mapped) || len(holes) > 0 {
		img.Mem = make([]byte, n)
		copy(img.Mem, mapped)
	}
	for i := range img.Pages {
		img.Pages[i] = Resident
	}
	for _, h := range holes {
		if h.End < h.Start || h.End > uint64(n) {
			return nil, fmt.Errorf("take mapped image %q: hole %#x-%#x outside its %d bytes: %w", name, h.Start, h.End, n, ErrHeaders)
		}
		if h.Start == h.End {
			continue
		}
		for p := h.Start / PageSize; p <= (h.End-1)/PageSize; p++ {
			img.Pages[p] = Absent
			clear(img.Mem[p*PageSize : (p+1)*PageSize])
		}
	}
	return img, nil
}

// ParseRanges parses ranges as a user writes them: "start-end" without the end, separated
// by commas, each number decimal or with 0x.
func ParseRanges(s string) ([]Range, error) {
	var out []Range
	for _, part := range strings.Split(s, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		from, to, ok := strings.Cut(part, "-")
		if !ok {
			return nil, fmt.Errorf("read range %q: no '-' between start and end", part)
		}
		start, err := strconv.ParseUint(strings.TrimSpace(from), 0, 64)
		if err != nil {
			return nil, fmt.Errorf("read range %q: %w", part, err)
		}
		end, err := strconv.ParseUint(strings.TrimSpace(to), 0, 64)
		if err != nil {
			return nil, fmt.Errorf("read range %q: %w", part, err)
		}
		if end < start {
			return nil, fmt.Errorf("read range %q: ends before it starts", part)
		}
		out = append(out, Range{start, end})
	}
	return out, nil
}

// MemoryView is the memory form of a region that no file is behind, or whose bytes differ
// from its file: what runs, as it runs.
type MemoryView struct {
	Data    []byte    // present pages, one after the other
	Runs    []ViewRun // where they were
	Absent  uint64    // bytes of the region that are not present
	Zero    uint64    // bytes of pages of zeros, left out
	Dropped uint64    // bytes left out because of the budget
	PE      bool      // begins with PE headers: worth a Rebuild as well
}

// ViewRun is a run of pages in a view.
type ViewRun struct {
	Offset uint64 `json:"offset"` // in Data
	VA     uint64 `json:"va"`
	Size   uint64 `json:"size"` // bytes
}

// NewMemoryView collects the present pages of a region into at most budget bytes. only has
// the RVAs of pages to collect; nil stands for all. It is used for an image that has a
// file.
//
// Pages of zeros are left out, which ends a run, so that a sparse region costs only what it
// contains. If the budget does not suffice, the beginning of each run is kept before its
// rest, because headers and entry points are at the beginning.
func NewMemoryView(region *Image, only []Range, budget int) (*MemoryView, error) {
	if len(region.Mem)%PageSize != 0 || len(region.Pages) != len(region.Mem)/PageSize {
		return nil, fmt.Errorf("view region %q: %d bytes with %d pages: %w", region.Name, len(region.Mem), len(region.Pages), ErrHeaders)
	}
	v := &MemoryView{}
	whole := only == nil
	var runs []Range
	for p := 0; p < len(region.Pages); p++ {
		page := region.Mem[p*PageSize : (p+1)*PageSize]
		for len(only) > 0 && only[0].End <= uint64(p)*PageSize {
			only = only[1:]
		}
		if !whole && (len(only) == 0 || only[0].Start > uint64(p)*PageSize) {
			continue
		}
		switch {
		case region.Pages[p] == Absent:
			v.Absent += PageSize
		case isZero(page):
			v.Zero += PageSize
		default:
			from := uint64(p) * PageSize
			if n := len(runs); n > 0 && runs[n-1].End == from {
				runs[n-1].End += PageSize
			} else {
				runs = append(runs, Range{from, from + PageSize})
			}
		}
	}
	for _, r := range fitRuns(runs, uint64(max(budget, 0))) {
		v.Runs = append(v.Runs, ViewRun{uint64(len(v.Data)), region.Base + r.Start, r.Len()})
		v.Data = append(v.Data, region.Mem[r.Start:r.End]...)
	}
	for _, r := range runs {
		v.Dropped += r.Len()
	}
	v.Dropped -= uint64(len(v.Data))
	if len(region.Pages) > 0 && region.Pages[0] != Absent {
		_, err := ParseHeaders(region.Mem[:min(len(region.Mem), 16*PageSize)])
		v.PE = err == nil
	}
	return v, nil
}

// fitRuns shortens runs until they fit the budget, all to the same length at most.
func fitRuns(runs []Range, budget uint64) []Range {
	var total uint64
	longest := uint64(0)
	for _, r := range runs {
		total += r.Len()
		longest = max(longest, r.Len())
	}
	if total <= budget {
		return runs
	}
	// The largest limit of a run, in pages, under which they all fit.
	lo, hi := uint64(0), longest/PageSize
	for lo < hi {
		mid := (lo + hi + 1) / 2
		var sum uint64
		for _, r := range runs {
			sum += min(r.Len(), mid*PageSize)
		}
		if sum <= budget {
			lo = mid
		} else {
			hi = mid - 1
		}
	}
	if lo == 0 { // more runs than pages in the budget
		runs, lo = runs[:budget/PageSize], 1
	}
	out := make([]Range, 0, len(runs))
	for _, r := range runs {
		out = append(out, Range{r.Start, min(r.End, r.Start+lo*PageSize)})
	}
	return out
}

func isZero(b []byte) bool {
	for ; len(b) >= 8; b = b[8:] {
		if b[0]|b[1]|b[2]|b[3]|b[4]|b[5]|b[6]|b[7] != 0 {
			return false
		}
	}
	for _, v := range b {
		if v != 0 {
			return false
		}
	}
	return true
}
