package cab

import "encoding/binary"

// lzx decodes LZX: a sliding window, three recent distances, and Huffman codes whose
// lengths are themselves coded as differences from those of the block before. A block of
// the cabinet is a frame of 32 KiB and ends at a 16-bit word; LZX's own blocks run across
// frames.
type lzx struct {
	window []byte
	at     int // where the next byte goes
	filled int // how much of the window is valid
	slots  int

	recent   [3]uint32
	mainLens [256 + 8*maxSlots]uint8
	lenLens  [lengthSymbols]uint8
	main     huffman
	lengths  huffman
	aligned  huffman

	kind    int // of the block at hand
	left    int // bytes that it has left
	odd     bool
	started bool
	call    uint32 // size that calls are translated for; 0 for none
	frames  uint32
	e8      bool // a call's opcode can have been coded

	bits bitReader
	out  []byte
}

const (
	maxSlots      = 50
	lengthSymbols = 249
	minMatch      = 2

	blockVerbatim     = 1
	blockAligned      = 2
	blockUncompressed = 3
)

// positionSlots is the number of distance ranges for a window of 2^n bytes, starting with n
// = 15.
var positionSlots = [...]int{30, 32, 34, 36, 38, 42, 50}

// position gives the extra bits of a range of distances, and its first distance.
func position(slot int) (extra uint, base uint32) {
	for i := range slot {
		e := uint(0)
		if i >= 4 {
			e = min(uint(i/2-1), 17)
		}
		base += 1 << e
	}
	if slot >= 4 {
		extra = min(uint(slot/2-1), 17)
	}
	return extra, base
}

var positions = func() (out [maxSlots]struct {
	extra uint
	base  uint32
}) {
	for i := range out {
		out[i].extra, out[i].base = position(i)
	}
	return out
}()

func newLZX(windowBits uint) (*lzx, error) {
	if windowBits < 15 || windowBits > 21 {
		return nil, corrupt("an LZX window of 2^%d bytes", windowBits)
	}
	return &lzx{window: make([]byte, 1<<windowBits), slots: positionSlots[windowBits-15], recent: [3]uint32{1, 1, 1}}, nil
}

// bitReader takes bits from little-endian 16-bit words, the highest first.
type bitReader struct {
	p    []byte
	at   int
	bits uint32 // left-justified
	n    uint
	over bool
}

func (b *bitReader) need(n uint) {
	for b.n < n {
		var w uint32
		if b.at+2 <= len(b.p) {
			w = uint32(binary.LittleEndian.Uint16(b.p[b.at:]))
		} else if b.at > len(b.p)+4 {
			b.over = true // a decoder may look ahead a little, no more
		}
		b.at += 2
		b.bits |= w << (16 - b.n)
		b.n += 16
	}
}

func (b *bitReader) read(n uint) uint32 {
	if n == 0 {
		return 0
	}
	if n > 16 {
		high := b.read(n - 16)
		return high<<16 | b.read(16)
	}
	b.need(n)
	v := b.bits >> (32 - n)
	b.bits <<= n
	b.n -= n
	return v
}

// align drops the rest of the current word.
func (b *bitReader) align() { b.bits, b.n = 0, 0 }

// huffman is a canonical code: for each length its first code, and the symbols in order.
type huffman struct {
	count   [17]uint32
	symbols []uint16
}

// build makes the code from a list of lengths. Lengths that form no code are corrupt. A
// code without symbols is valid as long as it decodes nothing.
func (h *huffman) build(lens []uint8) error {
	h.count = [17]uint32{}
	for _, l := range lens {
		h.count[l]++
	}
	h.count[0] = 0
	var next [17]uint32
	space, total := int64(1)<<16, uint32(0)
	for l := 1; l <= 16; l++ {
		next[l] = total
		total += h.count[l]
		space -= int64(h.count[l]) << (16 - l)
	}
	if space < 0 || space > 0 && total > 1 {
		return corrupt("LZX: code lengths that are no code")
	}
	if cap(h.symbols) < len(lens) {
		h.symbols = make([]uint16, len(lens))
	}
	h.symbols = h.symbols[:total]
	for sym, l := range lens {
		if l != 0 {
			h.symbols[next[l]] = uint16(sym)
			next[l]++
		}
	}
	return nil
}

// decode reads one symbol, or -1 if the bits are no symbol.
func (h *huffman) decode(b *bitReader) int {
	b.need(16)
	code, first, index := uint32(0), uint32(0), uint32(0)
	for l := uint(1); l <= 16; l++ {
		code = b.bits >> (32 - l)
		n := h.count[l]
		if code-first < n {
			b.bits <<= l
			b.n -= l
			return int(h.symbols[index+code-first])
		}
		index += n
		first = (first + n) << 1
	}
	return -1
}

// readLengths reads code lengths into lens, which holds those of the block before.
func (z *lzx) readLengths(lens []uint8) error {
	var pre [20]uint8
	for i := range pre {
		pre[i] = uint8(z.bits.read(4))
	}
	var h huffman
	if err := h.build(pre[:]); err != nil {
		return err
	}
	delta := func(old uint8, code int) uint8 { return uint8((int(old) + 17 - code) % 17) }
	for i := 0; i < len(lens); {
		code := h.decode(&z.bits)
		run, value := 1, uint8(0)
		switch {
		case code < 0 || z.bits.over:
			return corrupt("LZX: code lengths cut off")
		case code == 17:
			run = 4 + int(z.bits.read(4))
		case code == 18:
			run = 20 + int(z.bits.read(5))
		case code == 19:
			run = 4 + int(z.bits.read(1))
			if code = h.decode(&z.bits); code < 0 || code > 16 {
				return corrupt("LZX: a run of no length")
			}
			value = delta(lens[i], code)
		default:
			value = delta(lens[i], code)
		}
		if run > len(lens)-i {
			return corrupt("LZX: a run of lengths beyond their end")
		}
		for ; run > 0; run-- {
			lens[i] = value
			i++
		}
	}
	return nil
}

// startBlock reads the header of the next LZX block.
func (z *lzx) startBlock() error {
	if z.odd {
		// An uncompressed block of odd length is padded to a word.
		z.bits.at++
		z.odd = false
	}
	z.kind = int(z.bits.read(3))
	z.left = int(z.bits.read(24))
	if z.left == 0 {
		return corrupt("LZX: an empty block")
	}
	switch z.kind {
	case blockAligned:
		var lens [8]uint8
		for i := range lens {
			lens[i] = uint8(z.bits.read(3))
		}
		if err := z.aligned.build(lens[:]); err != nil {
			return err
		}
	case blockVerbatim:
	case blockUncompressed:
		z.e8 = true
		// Padding of one to sixteen bits leads to the next word: the rest of the current
		// word, or a whole word. A word that was read ahead belongs to what follows.
		z.bits.need(1)
		z.bits.at -= int((z.bits.n-1)/16) * 2
		z.bits.align()
		if z.bits.at+12 > len(z.bits.p) {
			return corrupt("LZX: an uncompressed block cut off")
		}
		for i := range z.recent {
			z.recent[i] = binary.LittleEndian.Uint32(z.bits.p[z.bits.at:])
			z.bits.at += 4
		}
		return nil
	default:
		return corrupt("LZX: a block of kind %d", z.kind)
	}
	mains := z.mainLens[:256+8*z.slots]
	for _, part := range [][]uint8{mains[:256], mains[256:], z.lenLens[:]} {
		if err := z.readLengths(part); err != nil {
			return err
		}
	}
	if err := z.main.build(mains); err != nil {
		return err
	}
	z.e8 = z.e8 || mains[0xe8] != 0
	return z.lengths.build(z.lenLens[:])
}

func (z *lzx) block(packed []byte, size int) ([]byte, error) {
	z.bits = bitReader{p: packed}
	if !z.started {
		z.started = true
		if z.bits.read(1) != 0 {
			z.call = z.bits.read(32)
		}
	}
	start := z.at
	for done := 0; done < size; {
		if z.left == 0 {
			if err := z.startBlock(); err != nil {
				return nil, err
			}
		}
		n := min(size-done, z.left)
		var err error
		if z.kind == blockUncompressed {
			err = z.copyStored(n)
		} else {
			n, err = z.decode(n)
		}
		if err != nil {
			return nil, err
		}
		if n > z.left || done+n > size {
			return nil, corrupt("LZX: a match runs over the end of its block or frame")
		}
		done, z.left = done+n, z.left-n
	}
	if z.left == 0 && z.odd && z.bits.at < len(packed) {
		z.odd = false // the padding is here
	}
	out := z.frame(start, size)
	z.translate(out)
	z.frames++
	return out, nil
}

// put appends one byte to the window.
func (z *lzx) put(b byte) {
	z.window[z.at] = b
	z.at = (z.at + 1) & (len(z.window) - 1)
	z.filled = min(z.filled+1, len(z.window))
}

func (z *lzx) copyStored(n int) error {
	if z.bits.at+n > len(z.bits.p) {
		return corrupt("LZX: stored data cut off")
	}
	for _, b := range z.bits.p[z.bits.at : z.bits.at+n] {
		z.put(b)
	}
	z.bits.at += n
	z.odd = z.odd != (n&1 != 0)
	return nil
}

// decode decodes at least n bytes; the last match may give more.
func (z *lzx) decode(n int) (int, error) {
	done := 0
	for done < n {
		sym := z.main.decode(&z.bits)
		if sym < 0 || z.bits.over {
			return 0, corrupt("LZX: data cut off")
		}
		if sym < 256 {
			z.put(byte(sym))
			done++
			continue
		}
		length := (sym - 256) & 7
		if length == 7 {
			more := z.lengths.decode(&z.bits)
			if more < 0 {
				return 0, corrupt("LZX: a match without a length")
			}
			length += more
		}
		length += minMatch
		distance, err := z.distance((sym - 256) >> 3)
		if err != nil {
			return 0, err
		}
		if distance == 0 || distance > uint32(z.filled) {
			return 0, corrupt("LZX: a match %d bytes back with %d there", distance, z.filled)
		}
		from := (z.at - int(distance)) & (len(z.window) - 1)
		for range length {
			z.put(z.window[from])
			from = (from + 1) & (len(z.window) - 1)
		}
		done += length
	}
	return done, nil
}

// distance reads the distance of a match and records it as recent.
func (z *lzx) distance(slot int) (uint32, error) {
	r := &z.recent
	switch slot {
	case 0:
	case 1, 2:
		r[0], r[slot] = r[slot], r[0]
	default:
		extra, base := positions[slot].extra, positions[slot].base
		d := base - 2
		if z.kind == blockAligned && extra >= 3 {
			d += z.bits.read(extra-3) << 3
			low := z.aligned.decode(&z.bits)
			if low < 0 {
				return 0, corrupt("LZX: a distance without its last bits")
			}
			d += uint32(low)
		} else {
			d += z.bits.read(extra)
		}
		r[2], r[1], r[0] = r[1], r[0], d
	}
	return r[0], nil
}

// frame copies the bytes decoded last out of the window.
func (z *lzx) frame(start, size int) []byte {
	z.out = z.out[:0]
	for i := range size {
		z.out = append(z.out, z.window[(start+i)&(len(z.window)-1)])
	}
	return z.out
}

// translate undoes what the compressor did to the targets of x86 calls: it made them
// absolute, so that calls of one function look the same.
func (z *lzx) translate(p []byte) {
	if z.call == 0 || !z.e8 || z.frames >= 32768 || len(p) <= 10 {
		return
	}
	pos := int32(z.frames * maxBlock)
	size := int32(z.call)
	for i := 0; i < len(p)-10; {
		if p[i] != 0xe8 {
			i++
			continue
		}
		here := pos + int32(i)
		abs := int32(binary.LittleEndian.Uint32(p[i+1:]))
		if abs >= -here && abs < size {
			rel := abs - here
			if abs < 0 {
				rel = abs + size
			}
			binary.LittleEndian.PutUint32(p[i+1:], uint32(rel))
		}
		i += 5
	}
}
