package pe

import (
	"encoding/binary"
	"slices"
)

// maxPointerSamples bounds the words that pointerBase looks at closely.
const maxPointerSamples = 1 << 18

// pointerBase derives the preferred base from addresses in the image that the
// loader does not relocate. Debug information, above all, holds addresses of
// functions as they were linked. Where functions are is known independently
// (unwind table, exports, relocated pointers), so that every such address and
// every function whose low 16 bits agree vote for one base, and the true one
// collects a vote for each address while the others collect chance. Where the votes
// are few they only choose among the candidates.
func (r *Rebuilder) pointerBase(candidates []uint64) (base uint64, votes int) {
	targets := r.knownTargets()
	if len(targets) == 0 {
		return 0, 0
	}
	slices.Sort(targets)
	targets = slices.Compact(targets)
	byLow := make(map[uint16][]uint32, len(targets))
	for _, t := range targets {
		byLow[uint16(t)] = append(byLow[uint16(t)], t)
	}
	tally := make(map[uint64]int)
	seen := make(map[uint64]struct{})
	samples := 0
	// Debug sections first: what they say is enough if they say anything.
	for _, debug := range []bool{true, false} {
		for _, s := range r.lay.spans {
			if s.sect < 0 || r.hdr.Sections[s.sect].Executable() || debug != isDebugSection(&r.hdr.Sections[s.sect]) {
				continue
			}
			r.eachPointer(s, debug, func(v uint64) bool {
				bucket := byLow[uint16(v)]
				if len(bucket) == 0 {
					return true
				}
				if _, dup := seen[v]; dup {
					return true
				}
				seen[v] = struct{}{}
				for _, t := range bucket[:min(len(bucket), 16)] {
					if v >= uint64(t)+0x400000 && len(tally) < maxPointerSamples {
						tally[v-uint64(t)]++
					}
				}
				samples++
				return samples < maxPointerSamples
			})
		}
		var second int
		for b, n := range tally {
			if n > votes || n == votes && b < base {
				if n > votes {
					second = votes
				}
				base, votes = b, n
			} else if n > second {
				second = n
			}
		}
		if votes >= 4 && votes >= 3*second {
			return base, votes
		}
		base, votes = 0, 0
	}
	// Too few for a verdict of their own, but enough to tell candidates apart, except
	// for those that pairs of small numbers vote for as well.
	for _, c := range candidates {
		if n := tally[c]; n > votes && n >= 2 && c != r.img.Base && c >= 0x400000 && c&0xfffffff != 0 && c != 0x1000000 {
			base, votes = c, n
		}
	}
	return base, votes
}

func isDebugSection(s *Section) bool {
	return s.Characteristics&scnDiscardable != 0 && s.Characteristics&scnWrite == 0 && s.Name != ".reloc"
}

// eachPointer calls f with every aligned word of a span that may be an address
// the loader left alone: in user range and, unless inside says so, not inside the
// image as it is mapped, where all words are that it did relocate. Debug sections
// have none of those. The file is looked at, not the image, because bound imports
// are undone in it.
func (r *Rebuilder) eachPointer(s span, inside bool, f func(v uint64) bool) {
	step := uint64(r.hdr.ptrSize())
	b, le := r.data[s.off:s.off+s.n], binary.LittleEndian
	top := r.img.Base + uint64(len(r.img.Mem))
	limit := uint64(1) << 47
	if step == 4 {
		limit = 1 << 31
	}
	for ; uint64(len(b)) >= step; b = b[step:] {
		var v uint64
		if step == 8 {
			v = le.Uint64(b)
		} else {
			v = uint64(le.Uint32(b))
		}
		if v < 0x11000 || v >= limit || !inside && v >= r.img.Base && v < top {
			continue
		}
		if !f(v) {
			return
		}
	}
}

// knownTargets are RVAs of functions and data that something in the image points to.
func (r *Rebuilder) knownTargets() []uint32 {
	const most = 1 << 16
	m, le := r.img.Mem, binary.LittleEndian
	var t []uint32
	if r.hdr.EntryPoint != 0 {
		t = append(t, r.hdr.EntryPoint)
	}
	if d := r.hdr.Dirs[dirException]; d.RVA != 0 && r.hdr.Machine == machineAMD64 {
		for rva := uint64(d.RVA); rva+12 <= uint64(d.RVA)+uint64(d.Size) && r.img.present(rva, 12) && len(t) < most; rva += 12 {
			if v := le.Uint32(m[rva:]); v != 0 {
				t = append(t, v)
			}
		}
	}
	if d := r.hdr.Dirs[dirExport]; d.RVA != 0 && r.img.present(uint64(d.RVA), 40) {
		e := m[d.RVA:]
		n, at := le.Uint32(e[20:]), uint64(le.Uint32(e[28:]))
		for ; n > 0 && r.img.present(at, 4) && len(t) < most; n, at = n-1, at+4 {
			if v := le.Uint32(m[at:]); v != 0 {
				t = append(t, v)
			}
		}
	}
	if r.hdr.PE64 && len(t) > 64 {
		return t
	}
	w := newRelocWalker(r.img, &r.hdr)
	ps := uint64(r.hdr.ptrSize())
	for len(t) < most {
		blk, ok := w.next()
		if !ok {
			break
		}
		for i := 0; i+2 <= len(blk.entries); i += 2 {
			rva := blk.page + uint64(le.Uint16(blk.entries[i:])&0xfff)
			if !r.img.present(rva, ps) {
				continue
			}
			if v := getUint(m[rva:rva+ps]) - r.img.Base; v < uint64(len(m)) {
				t = append(t, uint32(v))
			}
		}
	}
	return t
}
