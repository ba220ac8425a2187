package pe

import (
	"fmt"
)

// Symbol is an exported name of an address in another module of the guest.
type Symbol struct {
	Module    string // file name of the exporting module, as in "kernel32.dll"
	Name      string // empty if exported by ordinal only
	Ordinal   uint16
	Preferred uint64 // the address it would have at its module's preferred base; 0 if not known
}

// Options configure a rebuild. The zero value is usable.
type Options struct {
	// PreferredBase is the preferred base that the guest's loader recorded
	// (LDR_DATA_TABLE_ENTRY.OriginalBase), or 0 if it is not known.
	PreferredBase uint64
	// BaseCandidates are more bases to try, such as that of another mapping of the file.
	BaseCandidates []uint64
	// ResolveExport returns the exported names of an address of another module in the same
	// address space. It may return all names of an address. Optional.
	ResolveExport func(va uint64) []Symbol
	// Layout is the raw layout that the guest's section object has, for images whose
	// headers are wiped or forged. Optional.
	Layout *Layout
	// FilePages are pages of the file in its on-disk form, from the guest's cache. They
	// replace missing bytes and are compared with the others. Optional.
	FilePages []FilePage
	// FileSize is the size of the file on disk in bytes, if the guest's cache has it, or 0.
	// If it is known, the rebuilt file has that size, and the part behind its last section
	// is filled from FilePages.
	FileSize uint64
	// PE32 says that the image is known to be 32-bit. It is used if the headers are gone.
	PE32 bool
	// MaxFileSize bounds the rebuilt file, in bytes. 0 means twice the mapped size plus 16
	// MiB.
	MaxFileSize uint64
}

// File is a rebuilt file. Data belongs to the Rebuilder that made it, and its next rebuild
// overwrites it. The other fields do not change.
type File struct {
	Data     []byte // the on-disk form, up to the end of the last section
	Headers  *Headers
	Fidelity *Fidelity
}

// Rebuilder rebuilds one image after the other with the same buffers. It is not safe for
// concurrent use. The zero value is ready to use.
type Rebuilder struct {
	img       *Image
	opt       Options
	hdr       Headers
	lay       layout
	data      []byte
	maxFile   uint64 // limit of the file's size
	overlayAt uint64 // end of the last section in the file
	overlayIn bool   // every byte beyond it came from the cache
	fid       *Fidelity

	sum      uint64 // of the file's words, modulo 65535, as long as relocations are not undone
	sumKnown bool
	summing  bool // sum is that of the merged file
	solver   sumSolver
	solved   bool // solver holds this image's equation

	gaps          []Gap    // in the order found; sorted and merged at the end
	recovered     []Range  // file bytes of missing pages that became known from elsewhere
	names         [3]Range // RVAs that hold import names, if any page is missing
	thunks        []delayThunk
	searched      int    // bytes searched for import names
	foreignDone   bool   // relocated words that point elsewhere are recorded
	derived       uint64 // bytes of missing pages that put made known
	needle        []byte
	headerSource  []byte  // what the headers are parsed from: memory, or another source in its place
	configLost    bool    // the load configuration is on a page that is not present
	madeUp        bool    // the headers describe a layout and nothing else
	headerCopy    []byte  // header bytes for the file; empty when memory's serve
	unknownHeader []Range // file bytes of headerCopy that are made up
	clean         []Range // file bytes that the section's own pages gave
	state         []pageState
}

// Rebuild turns img into the file it was loaded from. If it fails there is no result, and
// the error wraps ErrHeaders or ErrTooLarge. Anything less is recorded in the result's
// Fidelity. img is not changed.
func Rebuild(img *Image, opt Options) (*File, error) {
	return new(Rebuilder).Rebuild(img, opt)
}

// Rebuild does what the function Rebuild does. The result's Data is valid until the next
// call.
func (r *Rebuilder) Rebuild(img *Image, opt Options) (*File, error) {
	if len(img.Mem) == 0 || len(img.Mem)%PageSize != 0 || len(img.Pages) != len(img.Mem)/PageSize {
		return nil, fmt.Errorf("rebuild %q: %d bytes with %d pages: %w", img.Name, len(img.Mem), len(img.Pages), ErrHeaders)
	}
	r.img, r.opt = img, opt
	defer func() { r.img, r.opt, r.fid = nil, Options{}, nil }()
	r.fid = &Fidelity{Name: img.Name, MappedSize: uint64(len(img.Mem))}
	r.gaps, r.recovered, r.headerCopy = r.gaps[:0], r.recovered[:0], r.headerCopy[:0]
	r.unknownHeader, r.clean = r.unknownHeader[:0], r.clean[:0]
	if cap(r.state) < len(img.Pages) {
		r.state = make([]pageState, len(img.Pages))
	}
	r.state = r.state[:len(img.Pages)]
	clear(r.state)
	r.searched, r.derived, r.madeUp, r.configLost = 0, 0, false, false
	r.names = [3]Range{}
	if err := r.headers(); err != nil {
		return nil, fmt.Errorf("rebuild %q: %w", img.Name, err)
	}
	if r.maxFile = opt.MaxFileSize; r.maxFile == 0 {
		r.maxFile = 2*uint64(len(img.Mem)) + 16<<20
	}
	if err := r.lay.plan(&r.hdr, img.Mem, r.maxFile); err != nil {
		return nil, fmt.Errorf("rebuild %q: %w", img.Name, err)
	}
	r.fid.Notes = append(r.fid.Notes, r.lay.notes...)
	r.copyBytes()
	r.writeHeaders()
	r.fillOverlay()
	r.restoreImports()
	r.restoreDelayImports()
	r.restorePseudoRelocs()
	r.restoreLoadConfig()
	r.undoDynamicRelocations()
	r.mergeShared()
	r.restoreBase()
	r.mergeFilePages()
	return r.finish(), nil
}

// copyBytes fills the file from the image and accounts for every byte.
func (r *Rebuilder) copyBytes() {
	r.overlayAt = r.lay.fileSize
	size := max(r.lay.fileSize, min(r.opt.FileSize, r.maxFile))
	r.lay.fileSize = size
	if uint64(cap(r.data)) < size {
		r.data = make([]byte, size)
	}
	r.data = r.data[:size]
	r.fid.FileSize = size
	_, base := r.cachedBase()
	r.sum, r.sumKnown = 0, !base && r.checkSumUsable() // no need to look for a base that is known
	done := uint64(0)                                  // file bytes before it are accounted for
	for _, s := range r.lay.byOffset {
		if s.off > done {
			r.assume(done, s.off)
		}
		r.sumKnown = r.sumKnown && s.off >= done && s.off%2 == 0
		if s.off < done {
			r.copyOverlap(s)
		} else {
			r.copySpan(s)
		}
		r.account(s, done)
		done = max(done, s.off+s.n)
	}
	r.assume(done, r.overlayAt)
	if r.overlayAt < size {
		clear(r.data[r.overlayAt:])
		r.fid.Bytes.Overlay += size - r.overlayAt
		r.gap(r.overlayAt, size, CauseOverlay)
	}
	r.dropGaps()
	r.clean = r.clean[:0]
	r.fid.MissingRVAs = missingRuns(r.img.Pages)
}

// copySpan copies the bytes of one span and sums them up on the way, while they
// are in the processor's cache.
func (r *Rebuilder) copySpan(s span) {
	const chunk = 128 << 10
	dst, src := r.data[s.off:s.off+s.n], r.img.Mem[s.rva:s.rva+s.n]
	if !r.sumKnown {
		copy(dst, src)
		return
	}
	for len(src) > 0 {
		n := copy(dst[:min(chunk, len(dst))], src)
		r.sum += onesSum(dst[:n])
		dst, src = dst[n:], src[n:]
	}
}

// copyOverlap copies a span whose file bytes are also mapped elsewhere, as in packed files
// whose headers claim to reach into the first section. Only pages that are present replace
// what the other mapping has.
func (r *Rebuilder) copyOverlap(s span) {
	for rva := s.rva; rva < s.rva+s.n; {
		end := min(rva&^(PageSize-1)+PageSize, s.rva+s.n)
		if r.img.Pages[rva/PageSize] != Absent {
			from, to := s.off+rva-s.rva, s.off+end-s.rva
			copy(r.data[from:to], r.img.Mem[rva:end])
			if r.isGap(from, to) {
				r.derived += to - from
			}
			r.clean = append(r.clean, Range{from, to})
		}
		rva = end
	}
}

// account counts the bytes of one span by origin. File bytes before done belong
// to an earlier span.
func (r *Rebuilder) account(s span, done uint64) {
	var n [numOrigins]uint64
	for rva := s.rva; rva < s.rva+s.n; {
		end := min(rva&^(PageSize-1)+PageSize, s.rva+s.n)
		o := r.img.Pages[rva/PageSize]
		from, to := s.off+rva-s.rva, s.off+end-s.rva
		if from = max(from, done); from < to {
			if o == Absent {
				clear(r.data[from:to])
			}
			if o >= numOrigins {
				o = Resident
			}
			n[o] += to - from
			if o == Absent {
				r.gap(from, to, CauseMissing)
			}
		}
		rva = end
	}
	b := &r.fid.Bytes
	b.Missing += n[Absent]
	b.Resident += n[Resident]
	b.Transition += n[Transition]
	b.Prototype += n[Prototype]
	b.DemandZero += n[DemandZero]
	b.Private += n[Private]
	b.FileCache += n[FileCache]
	b.Other += n[OtherProcess]
	b.PagedIn += n[PagedIn]
}

// assume zero-fills file bytes that are never mapped.
func (r *Rebuilder) assume(from, to uint64) {
	if from >= to {
		return
	}
	clear(r.data[from:to])
	r.fid.Bytes.Assumed += to - from
	r.gap(from, to, CauseUnmapped)
}

// gap records file bytes that are not known, extending the last gap if it continues it.
func (r *Rebuilder) gap(from, to uint64, c Cause) {
	if n := len(r.gaps); n > 0 && r.gaps[n-1].End == from && r.gaps[n-1].Cause == c {
		r.gaps[n-1].End = to
		return
	}
	r.gaps = append(r.gaps, Gap{Range{from, to}, c})
}

// unknown records file bytes that are present but could not be restored.
func (r *Rebuilder) unknown(from, to uint64, c Cause) {
	switch c {
	case CauseImport, CauseBound, CauseDelay, CauseGuard, CauseTLS:
		if r.img.PrivateKnown {
			r.unknownWritten(from, to, c)
			return
		}
	}
	r.gap(from, to, c)
}

// unknownWritten does what unknown does for bytes that the loader writes. The loader writes
// to private copies only.
func (r *Rebuilder) unknownWritten(from, to uint64, c Cause) {
	for from < to {
		s, next := r.spanAtOffset(from, to)
		if s == nil || !r.sectionOwned(s.rva+from-s.off, next-from) {
			r.gap(from, next, c)
		}
		from = next
	}
}

// sectionOwned reports whether n bytes at rva are on pages of the section that nobody has
// written to. On those only relocations have to be undone.
func (r *Rebuilder) sectionOwned(rva, n uint64) bool {
	if !r.img.PrivateKnown || !r.img.present(rva, max(n, 1)) {
		return false
	}
	for p := rva / PageSize; p <= (rva+max(n, 1)-1)/PageSize; p++ {
		switch r.img.Pages[p] {
		case Resident, Transition, Prototype, PagedIn:
		default:
			return false
		}
	}
	return true
}

// put sets bytes at rva that the loader has written back to their former values, if all of
// them belong to the file. Bytes of an absent page become known by that. It reports whether
// the file has these values now.
func (r *Rebuilder) put(rva uint64, b []byte) bool {
	if r.sectionOwned(rva, uint64(len(b))) {
		_, ok := r.lay.offset(rva, uint64(len(b)))
		return ok
	}
	return r.write(rva, b)
}

// write writes restored bytes at rva into the file.
func (r *Rebuilder) write(rva uint64, b []byte) bool {
	off, ok := r.lay.offset(rva, uint64(len(b)))
	if !ok {
		return false
	}
	if r.sumKnown {
		r.sum += 65535 - residue(r.data[off:off+uint64(len(b))], off) + residue(b, off)
	}
	copy(r.data[off:], b)
	r.fid.Bytes.Restored += uint64(len(b))
	if !r.img.present(rva, uint64(len(b))) {
		r.recovered = append(r.recovered, Range{off, off + uint64(len(b))})
		for at, end := rva, rva+uint64(len(b)); at < end; {
			next := min(end, at&^(PageSize-1)+PageSize)
			if r.img.Pages[at/PageSize] == Absent {
				r.derived += next - at
			}
			at = next
		}
	}
	return true
}

func missingRuns(pages []Origin) []Range {
	var runs []Range
	for i := 0; i < len(pages); i++ {
		if pages[i] != Absent {
			continue
		}
		j := i
		for j < len(pages) && pages[j] == Absent {
			j++
		}
		runs = append(runs, Range{uint64(i) * PageSize, uint64(j) * PageSize})
		i = j
	}
	return runs
}

func compareU64(a, b uint64) int {
	if a < b {
		return -1
	} else if a > b {
		return 1
	}
	return 0
}
