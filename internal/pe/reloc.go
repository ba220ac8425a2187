package pe

import (
	"encoding/binary"
	"iter"
)

// Base relocation types, from winnt.h (IMAGE_REL_BASED_*).
const (
	relAbsolute = 0
	relHigh     = 1
	relLow      = 2
	relHighLow  = 3
	relHighAdj  = 4
	relDir64    = 10
)

// relocSize is the number of bytes a relocation of a type changes, 0 for types
// that belong to other processors.
func relocSize(t uint16) uint64 {
	switch t {
	case relHigh, relLow, relHighAdj:
		return 2
	case relHighLow:
		return 4
	case relDir64:
		return 8
	}
	return 0
}

// relocBlock is one block of the base relocation table.
type relocBlock struct {
	page    uint64 // RVA the entries are relative to
	entries []byte // 2 bytes each
}

// relocWalker iterates over the blocks of the base relocation table in memory.
// It reads nothing outside the directory and takes at least 8 bytes a step, so
// it ends after size/8 steps whatever the table says.
type relocWalker struct {
	img       *Image
	sizeImage uint64
	rva, end  uint64
	lastPage  uint64
	lost      []Range // RVAs whose relocations are unknown, because their block is not present
	clipped   bool    // the table ended in a block that makes no sense
}

func newRelocWalker(img *Image, h *Headers) relocWalker {
	d := h.Dirs[dirBaseReloc]
	w := relocWalker{img: img, rva: uint64(d.RVA), sizeImage: uint64(len(img.Mem))}
	w.end = min(w.rva+uint64(d.Size), uint64(len(img.Mem)))
	if d.RVA == 0 {
		w.end = w.rva
	}
	return w
}

// entries iterates over the 16-bit entries of the remaining blocks: the RVA that an entry
// is for, and its upper four bits, which in a base relocation table are the type.
func (w *relocWalker) entries() iter.Seq2[uint64, uint16] {
	return func(yield func(rva uint64, bits uint16) bool) {
		for blk, ok := w.next(); ok; blk, ok = w.next() {
			for e := blk.entries; len(e) >= 2; e = e[2:] {
				v := binary.LittleEndian.Uint16(e)
				if !yield(blk.page+uint64(v&0xfff), v>>12) {
					return
				}
			}
		}
	}
}

func (w *relocWalker) next() (relocBlock, bool) {
	le := binary.LittleEndian
	for w.rva+8 <= w.end {
		if !w.img.present(w.rva, 8) {
			if !w.resync() {
				return relocBlock{}, false
			}
			continue
		}
		b := w.img.Mem[w.rva:]
		page, size := uint64(le.Uint32(b)), uint64(le.Uint32(b[4:]))
		if size == 0 && page == 0 {
			return relocBlock{}, false // padding after the last block
		}
		if size < 8 || page >= w.sizeImage {
			w.clipped = true
			return relocBlock{}, false
		}
		if size > w.end-w.rva {
			w.clipped = true
			size = w.end - w.rva
		}
		at := w.rva
		w.rva += alignUp(size, 2)
		w.lastPage = page
		if w.img.present(at, size) {
			return relocBlock{page, b[8:size]}, true
		}
		// Part of the block is missing. Entries ascend in every table a linker makes,
		// but which are lost cannot be told: the whole page is in doubt beyond those read.
		w.lost = append(w.lost, Range{page, page + PageSize})
		n := PageSize - at%PageSize
		if w.img.present(at, n) && n > 8 {
			return relocBlock{page, b[8 : n&^1]}, true
		}
	}
	return relocBlock{}, false
}

// resync finds the next block after pages that are not present: the first place
// in the next present page where two chained headers make sense.
func (w *relocWalker) resync() bool {
	from := w.lastPage
	if from != 0 {
		from += PageSize
	}
	pos := (w.rva + 7) &^ (PageSize - 1) // the page that is absent
	if w.img.Pages[w.rva/PageSize] == Absent {
		pos = w.rva &^ (PageSize - 1)
	}
	for pos < w.end && w.img.Pages[pos/PageSize] == Absent {
		pos += PageSize
	}
	limit := min(pos+2*PageSize, w.end)
	for ; pos+8 <= limit; pos += 4 {
		if page, size, ok := w.header(pos, from); ok {
			next := pos + size
			if next+8 > w.end || !w.img.present(next, 8) {
				if size > 8+2*PageSize || next > w.end {
					continue
				}
			} else if np, ns, ok := w.header(next, page+1); !ok && (np != 0 || ns != 0) {
				continue
			}
			w.lost = append(w.lost, Range{from, page})
			w.rva = pos
			return true
		}
	}
	w.lost = append(w.lost, Range{from, w.sizeImage})
	w.rva = w.end
	return false
}

func (w *relocWalker) header(pos, above uint64) (page, size uint64, ok bool) {
	if pos%4 != 0 || !w.img.present(pos, 8) {
		return 0, 0, false
	}
	le := binary.LittleEndian
	page, size = uint64(le.Uint32(w.img.Mem[pos:])), uint64(le.Uint32(w.img.Mem[pos+4:]))
	ok = page%PageSize == 0 && page >= above && page < w.sizeImage && size >= 8 && size%4 == 0 && size <= 8+2*2*PageSize
	return page, size, ok
}

// findRelocations looks for the base relocation table if the headers are made up and do not
// give its place. It must be at the start of a section that can be neither written to nor
// executed, with blocks whose pages ascend, up to zeros or the section's end.
func (r *Rebuilder) findRelocations() {
	for i := range r.hdr.Sections {
		s := &r.hdr.Sections[i]
		if s.Writable() || s.Executable() || s.RawSize < 12 {
			continue
		}
		w := relocWalker{img: r.img, sizeImage: uint64(len(r.img.Mem))}
		at, end := uint64(s.VirtualAddress), min(uint64(s.VirtualAddress)+uint64(s.RawSize), uint64(len(r.img.Mem)))
		above, blocks := uint64(0), 0
		for at+8 <= end {
			page, size, ok := w.header(at, above)
			if !ok {
				break
			}
			above, at = page+1, at+size
			blocks++
		}
		rest := at+8 > end || r.img.present(at, 8) && isZero(r.img.Mem[at:at+8]) || !r.img.present(at, 8)
		if blocks > 0 && rest {
			r.hdr.Dirs[dirBaseReloc] = Directory{RVA: s.VirtualAddress, Size: s.RawSize}
			return
		}
	}
}

// undoRelocations subtracts delta (actual minus preferred base) from every
// relocated word of the file. It returns what it did in r.fid.Relocations.
func (r *Rebuilder) undoRelocations(delta uint64) {
	f := &r.fid.Relocations
	w := newRelocWalker(r.img, &r.hdr)
	for {
		blk, ok := w.next()
		if !ok {
			break
		}
		f.Blocks++
		if r.configLost {
			r.doubtOverwritten(blk)
		}
		r.undoBlock(blk, delta, f)
	}
	f.Truncated = w.clipped
	if r.madeUp && f.Blocks == 0 {
		// The place of the table is not known.
		w.lost = append(w.lost, Range{0, w.sizeImage})
	} else if delta == 0 {
		return
	}
	// Ranges that are lost do not overlap unless the table was made to confuse.
	budget := 2 * uint64(len(r.img.Mem))
	for _, g := range w.lost {
		if g.Start >= g.End || g.Len() > budget {
			continue
		}
		budget -= g.Len()
		r.guessRelocations(g, delta)
	}
}

// doubtOverwritten records relocated words that do not point into the image as in doubt:
// the loader has put other addresses there, and the load configuration, which would tell,
// is lost. It is called before relocations are undone.
func (r *Rebuilder) doubtOverwritten(blk relocBlock) {
	ps := uint64(r.hdr.ptrSize())
	low, high := r.img.Base-min(guessMargin, r.img.Base), r.img.Base+uint64(len(r.img.Mem))+guessMargin
	for e := blk.entries; len(e) >= 2; e = e[2:] {
		v := binary.LittleEndian.Uint16(e)
		rva := blk.page + uint64(v&0xfff)
		off, ok := r.lay.offset(rva, ps)
		if relocSize(v>>12) != ps || !ok || !r.img.present(rva, ps) {
			continue
		}
		if w := getUint(r.data[off : off+ps]); w < low || w > high {
			r.unknown(off, off+ps, CauseGuard)
		}
	}
}

func (r *Rebuilder) undoBlock(blk relocBlock, delta uint64, f *RelocationFidelity) {
	le := binary.LittleEndian
	var window []byte // file bytes of the block's page, if it is present and whole
	if r.img.present(blk.page, PageSize) {
		if s := r.lay.find(blk.page); s != nil {
			at := blk.page - s.rva
			window = r.data[s.off+at : s.off+min(s.n, at+PageSize)]
		}
	}
	e := blk.entries
	for i := 0; i+2 <= len(e); i += 2 {
		v := le.Uint16(e[i:])
		t, o := v>>12, int(v&0xfff)
		switch t {
		case relAbsolute:
			continue
		case relDir64:
			if o+8 <= len(window) {
				b := window[o : o+8]
				le.PutUint64(b, le.Uint64(b)-delta)
				f.Undone++
				continue
			}
		case relHighLow:
			if o+4 <= len(window) {
				b := window[o : o+4]
				le.PutUint32(b, le.Uint32(b)-uint32(delta))
				f.Undone++
				continue
			}
		}
		d := delta
		size := relocSize(t)
		if t == relHighAdj {
			// The low half comes in the next entry; what matters of it is its carry.
			i += 2
			if i+2 > len(e) {
				f.Invalid++
				break
			}
			d = uint64(int64(int32(uint32(delta)+0x8000+uint32(int32(int16(le.Uint16(e[i:])))))) >> 16)
		} else if t == relHigh {
			d = delta >> 16
		}
		if size == 0 {
			f.Unsupported++
			continue
		}
		r.undoSlow(blk.page+uint64(o), size, d, f)
	}
}

// undoSlow undoes one relocation that crosses a page or section end or lies
// outside the file.
func (r *Rebuilder) undoSlow(rva, size, d uint64, f *RelocationFidelity) {
	if rva+size > uint64(len(r.img.Mem)) {
		f.Invalid++
		return
	}
	if r.img.present(rva, size) {
		if off, ok := r.lay.offset(rva, size); ok {
			putUint(r.data[off:off+size], getUint(r.data[off:off+size])-d)
			f.Undone++
			return
		}
	}
	// Some of the bytes are missing or not part of the file: undo the others. A low
	// part that is missing can borrow only if the delta has bits there.
	var bytes [8]byte
	var known, total int
	lowKnown := true
	for i := uint64(0); i < size; i++ {
		if r.img.present(rva+i, 1) {
			bytes[i] = r.img.Mem[rva+i]
			known++
		} else if d>>(8*i)&0xff != 0 && i+1 < size {
			lowKnown = false
		}
		if _, ok := r.lay.offset(rva+i, 1); ok {
			total++
		}
	}
	if total == 0 || known == 0 {
		f.Absent++
		return
	}
	putUint(bytes[:size], getUint(bytes[:size])-d)
	for i := uint64(0); i < size; i++ {
		off, ok := r.lay.offset(rva+i, 1)
		if !ok || !r.img.present(rva+i, 1) {
			continue
		}
		r.data[off] = bytes[i]
		if !lowKnown {
			r.unknown(off, off+1, CauseRelocation)
		}
	}
	if f.Partial++; lowKnown {
		f.Undone++
	}
}

// guessMargin is how far beyond the image a relocated word may point: behind an
// array's end, or before its start.
const guessMargin = 0x10000

// guessRelocations undoes relocations of pages whose part of the relocation
// table is not present: words that point into the image are taken for relocated.
// All bytes that may belong to such a word are recorded as in doubt. In x86 code
// addresses stand at any offset, so that words may overlap; then the first is
// undone and all are in doubt, as are the bytes next to a page that is missing.
func (r *Rebuilder) guessRelocations(g Range, delta uint64) {
	size := uint64(r.hdr.ptrSize())
	step := size
	if !r.hdr.PE64 {
		step = 1
	}
	low, high := r.img.Base-min(guessMargin, r.img.Base), r.img.Base+uint64(len(r.img.Mem))+guessMargin
	for _, s := range r.lay.spans {
		from, to := max(g.Start, s.rva), min(g.End, s.rva+s.n)
		if s.sect < 0 || from >= to {
			continue
		}
		undone := uint64(0) // RVA up to which words are undone
		for rva := alignUp(from, step); rva < to; {
			if r.img.Pages[rva/PageSize] == Absent {
				next := rva&^(PageSize-1) + PageSize
				if step == 1 {
					r.doubtEdges(&s, rva, min(next, to), size-1)
				}
				rva = next
				continue
			}
			if rva+size > to || !r.img.present(rva, size) {
				rva += step
				continue
			}
			v := getUint(r.img.Mem[rva : rva+size])
			if r.configLost && r.hdr.PE64 && v>>40 == 0x7f && (v < low || v > high) {
				// An address of 64-bit Windows' DLLs: the loader has set it, to something
				// that is not known.
				r.unknown(s.off+rva-s.rva, s.off+rva-s.rva+size, CauseGuard)
			}
			if v >= low && v <= high {
				off := s.off + rva - s.rva
				if rva >= undone && !r.amongNames(rva, size) {
					b := r.data[off : off+size]
					putUint(b, getUint(b)-delta)
					r.fid.Relocations.Guessed++
					undone = rva + size
				}
				r.unknown(off, off+size, CauseRelocation)
			}
			rva += step
		}
	}
}

// amongNames reports whether n bytes at rva reach into where import names are: what looks
// like an address there is not one, most likely.
func (r *Rebuilder) amongNames(rva, n uint64) bool {
	for _, g := range r.names {
		if rva+n > g.Start && rva < g.End {
			return true
		}
	}
	return false
}

// doubtEdges records up to n bytes on either side of the missing run [from, to)
// as in doubt: a word may begin or end there.
func (r *Rebuilder) doubtEdges(s *span, from, to, n uint64) {
	for i := uint64(1); i <= n; i++ {
		if rva := from - i; rva >= s.rva && r.img.Pages[rva/PageSize] != Absent {
			r.unknown(s.off+rva-s.rva, s.off+rva-s.rva+1, CauseRelocation)
		}
		if rva := to + i - 1; rva < s.rva+s.n && r.img.Pages[rva/PageSize] != Absent {
			r.unknown(s.off+rva-s.rva, s.off+rva-s.rva+1, CauseRelocation)
		}
	}
}

func getUint(b []byte) uint64 {
	var v uint64
	for i := len(b) - 1; i >= 0; i-- {
		v = v<<8 | uint64(b[i])
	}
	return v
}

func putUint(b []byte, v uint64) {
	for i := range b {
		b[i] = byte(v)
		v >>= 8
	}
}
