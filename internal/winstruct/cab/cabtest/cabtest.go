// Package cabtest makes cabinets for tests: stored, MSZIP and LZX. It shares no code with
// the reader that it tests. A test compares both with cabextract.
package cabtest

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"math/bits"
)

const (
	headerSize  = 36
	flagReserve = 4
	frame       = 32 << 10 // bytes of one block, uncompressed

	blockVerbatim     = 1
	blockAligned      = 2
	blockUncompressed = 3
)

// cabinet makes a cabinet with one file out of compressed blocks.
func cabinet(kind uint16, name string, size int, blocks [][]byte, sizes []int, reserve bool) []byte {
	le := binary.LittleEndian
	var flags uint16
	var extra, perFolder, perBlock []byte
	if reserve {
		flags, perFolder, perBlock = flagReserve, []byte{1, 2, 3}, []byte{4, 5}
		extra = append(le.AppendUint16(nil, 4), byte(len(perFolder)), byte(len(perBlock)), 9, 9, 9, 9)
	}
	files := headerSize + len(extra) + 8 + len(perFolder)
	data := files + 16 + len(name) + 1
	var body []byte
	for i, b := range blocks {
		head := le.AppendUint16(le.AppendUint16(nil, uint16(len(b))), uint16(sizes[i]))
		all := append(append([]byte{}, perBlock...), b...)
		body = le.AppendUint32(body, checksum(head, checksum(b, 0)))
		body = append(append(body, head...), all...)
	}
	out := []byte("MSCF")
	for _, w := range []uint32{0, uint32(data + len(body)), 0, uint32(files), 0} {
		out = le.AppendUint32(out, w)
	}
	out = append(out, 3, 1)
	for _, w := range []uint16{1, 1, flags, 1, 0} {
		out = le.AppendUint16(out, w)
	}
	out = append(out, extra...)
	out = le.AppendUint32(out, uint32(data))
	out = le.AppendUint16(le.AppendUint16(out, uint16(len(blocks))), kind)
	out = append(out, perFolder...)
	out = le.AppendUint32(le.AppendUint32(out, uint32(size)), 0)
	for _, w := range []uint16{0, 0x4d6e, 0x6000, 0x20} {
		out = le.AppendUint16(out, w)
	}
	return append(append(append(out, name...), 0), body...)
}

func frames(data []byte) (out [][]byte, sizes []int) {
	for len(data) > 0 {
		n := min(len(data), frame)
		out, sizes, data = append(out, data[:n]), append(sizes, n), data[n:]
	}
	return out, sizes
}

// Stored makes a cabinet with an uncompressed file, with or without reserved space in its
// headers.
func Stored(name string, data []byte, reserve bool) []byte {
	blocks, sizes := frames(data)
	return cabinet(0, name, len(data), blocks, sizes, reserve)
}

// MSZIP makes a cabinet with a file that is compressed by MSZIP.
func MSZIP(name string, data []byte) []byte {
	blocks, sizes := frames(data)
	var before []byte
	for i, b := range blocks {
		var buf bytes.Buffer
		buf.WriteString("CK")
		w, err := flate.NewWriterDict(&buf, 9, before)
		if err != nil {
			panic(err)
		}
		if _, err := w.Write(b); err != nil {
			panic(err)
		}
		if err := w.Close(); err != nil {
			panic(err)
		}
		before, blocks[i] = b, buf.Bytes()
	}
	return cabinet(1, name, len(data), blocks, sizes, false)
}

// lzxWriter writes the bit stream of one frame.
type lzxWriter struct {
	out []byte
	acc uint32
	n   uint
}

func (w *lzxWriter) put(v uint32, n uint) {
	for n > 0 {
		n--
		w.acc = w.acc<<1 | v>>n&1
		if w.n++; w.n == 16 {
			w.out = binary.LittleEndian.AppendUint16(w.out, uint16(w.acc))
			w.acc, w.n = 0, 0
		}
	}
}

func (w *lzxWriter) align() {
	if w.n > 0 {
		w.put(0, 16-w.n)
	}
}

// code is a complete Huffman code over the first used of n symbols.
type code struct {
	lens  []uint8
	words []uint32
}

func newCode(n, used int) code {
	c := code{make([]uint8, n), make([]uint32, n)}
	k := bits.Len(uint(used - 1))
	for i := range used {
		c.lens[i] = uint8(k)
		if i < 1<<k-used {
			c.lens[i]--
		}
	}
	next := uint32(0)
	for l := uint8(1); l <= 16; l++ {
		for i, have := range c.lens {
			if have == l {
				c.words[i] = next
				next++
			}
		}
		next <<= 1
	}
	return c
}

func (w *lzxWriter) symbol(c code, s int) { w.put(c.words[s], uint(c.lens[s])) }

// lengths writes code lengths as differences from those before, with runs where there
// are any.
func (w *lzxWriter) lengths(lens, before []uint8) {
	pre := newCode(20, 20)
	for _, l := range pre.lens {
		w.put(uint32(l), 4)
	}
	for i := 0; i < len(lens); {
		run := 1
		for i+run < len(lens) && lens[i+run] == lens[i] {
			run++
		}
		delta := int(before[i]+17-lens[i]) % 17
		switch {
		case lens[i] == 0 && run >= 20:
			run = min(run, 51)
			w.symbol(pre, 18)
			w.put(uint32(run-20), 5)
		case lens[i] == 0 && run >= 4:
			run = min(run, 19)
			w.symbol(pre, 17)
			w.put(uint32(run-4), 4)
		case run >= 4:
			run = min(run, 5)
			w.symbol(pre, 19)
			w.put(uint32(run-4), 1)
			w.symbol(pre, delta)
		default:
			run = 1
			w.symbol(pre, delta)
		}
		i += run
	}
}

// LZX makes a cabinet with a file that is compressed by LZX. The window has 2^window bytes.
// If calls is set, the targets of x86 calls are translated. blockSize is the size of LZX's
// blocks in bytes; they are of all three kinds in turn.
func LZX(name string, data []byte, window uint, calls bool, blockSize int) []byte {
	src := bytes.Clone(data)
	if calls {
		translateCalls(src, len(data))
	}
	slots := []int{30, 32, 34, 36, 38, 42, 50}[window-15]
	mains, lens := newCode(256+8*slots, 256+8*slots), newCode(249, 249)
	sparse := newCode(256+8*slots, 256+8*20) // a code that leaves symbols out
	oldMain, oldLens := make([]uint8, len(mains.lens)), make([]uint8, 249)
	aligned := newCode(8, 8)
	recent := [3]int{1, 1, 1}
	last := make(map[[3]byte]int)
	var blocks [][]byte
	var sizes []int
	kind, left, odd, main := 0, 0, false, mains
	kinds := []int{blockVerbatim, blockAligned, blockUncompressed, blockVerbatim}
	turn := 0
	for at := 0; at < len(src); {
		w := &lzxWriter{}
		if at == 0 {
			if calls {
				w.put(1, 1)
				w.put(uint32(len(data)), 32)
			} else {
				w.put(0, 1)
			}
		}
		end := min(at+frame, len(src))
		sizes = append(sizes, end-at)
		for at < end {
			if left == 0 {
				if odd {
					w.out = append(w.out, 0)
					odd = false
				}
				kind, left = kinds[turn%len(kinds)], min(blockSize, len(src)-at)
				main = mains
				if turn++; turn%3 == 0 {
					main = sparse
				}
				w.put(uint32(kind), 3)
				w.put(uint32(left), 24)
				switch kind {
				case blockAligned:
					for _, l := range aligned.lens {
						w.put(uint32(l), 3)
					}
				case blockUncompressed:
					odd = left&1 != 0
					w.put(0, 16-w.n)
					for _, r := range recent {
						w.out = binary.LittleEndian.AppendUint32(w.out, uint32(r))
					}
				}
				if kind != blockUncompressed {
					w.lengths(main.lens[:256], oldMain[:256])
					w.lengths(main.lens[256:], oldMain[256:])
					w.lengths(lens.lens, oldLens)
					copy(oldMain, main.lens)
					copy(oldLens, lens.lens)
				}
			}
			most := min(left, end-at)
			if kind == blockUncompressed {
				w.out = append(w.out, src[at:at+most]...)
				at, left = at+most, left-most
				continue
			}
			n, distance := 0, 0
			if at+3 <= len(src) {
				key := [3]byte(src[at : at+3])
				if from, ok := last[key]; ok && at-from <= 1<<window-3 {
					distance = at - from
					for n < min(most, 257) && src[from+n] == src[at+n] {
						n++
					}
				}
				last[key] = at
			}
			slot, extra, low := slotOf(distance, &recent, n >= 2)
			if n < 2 || main.lens[256+8*slot] == 0 {
				w.symbol(main, int(src[at]))
				n = 1
			} else {
				commit(distance, &recent)
				header := min(n-2, 7)
				w.symbol(main, 256+8*slot+header)
				if header == 7 {
					w.symbol(lens, n-9)
				}
				if kind == blockAligned && extra >= 3 {
					w.put(low>>3, extra-3)
					w.symbol(aligned, int(low&7))
				} else {
					w.put(low, extra)
				}
			}
			at, left = at+n, left-n
		}
		w.align()
		blocks = append(blocks, w.out)
	}
	return cabinet(3|uint16(window)<<8, name, len(data), blocks, sizes, false)
}

// slotOf is the position slot of a distance, its extra bits and their value.
func slotOf(distance int, recent *[3]int, real bool) (slot int, extra uint, low uint32) {
	if !real {
		return 0, 0, 0
	}
	for i, r := range recent {
		if r == distance {
			return i, 0, 0
		}
	}
	base := 3
	for slot = 3; ; slot++ {
		e := uint(0)
		if slot >= 4 {
			e = min(uint(slot/2-1), 17)
		}
		if first := base - 2; distance < first+1<<e {
			return slot, e, uint32(distance - first)
		}
		base += 1 << e
	}
}

func commit(distance int, recent *[3]int) {
	for i, r := range recent {
		if r == distance {
			recent[0], recent[i] = recent[i], recent[0]
			return
		}
	}
	recent[2], recent[1], recent[0] = recent[1], recent[0], distance
}

// translateCalls makes the targets of calls absolute, frame by frame.
func translateCalls(p []byte, size int) {
	for start := 0; start < len(p); start += frame {
		part := p[start:min(start+frame, len(p))]
		for i := 0; i < len(part)-10; {
			if part[i] != 0xe8 {
				i++
				continue
			}
			here := start + i
			rel := int(int32(binary.LittleEndian.Uint32(part[i+1:])))
			switch {
			case rel >= -here && rel < size-here:
				rel += here
			case rel >= size-here && rel < size:
				rel -= size
			}
			binary.LittleEndian.PutUint32(part[i+1:], uint32(int32(rel)))
			i += 5
		}
	}
}

// checksum is the exclusive or of 32-bit words; the last bytes come in reverse.
func checksum(p []byte, sum uint32) uint32 {
	for i := range p {
		shift := i % 4 * 8
		if rest := len(p) % 4; i >= len(p)-rest {
			shift = (len(p) - 1 - i) * 8
		}
		sum ^= uint32(p[i]) << shift
	}
	return sum
}
