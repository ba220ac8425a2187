package pe_test

import (
	"bytes"
	"encoding/binary"
	"path/filepath"
	"slices"
	"testing"

	"vmav.dev/vmav/internal/pe"
)

// wineRuns compares what was rebuilt of a process under Wine with the files, and
// accounts for each byte that differs.
type wineRuns struct {
	ran, again *wineProcess // two processes that did the same

	readOnly, readOnlyOff, writable, writableOff int

	causes map[string]*causeCount
}

type causeCount struct {
	words, bytes int
	modules      []string
}

// compare compares one rebuilt file and returns how many bytes of it differ. Each
// pointer-sized word that differs must be in a section that may be written to, in no
// structure that the loader writes, and hold what its cause says.
func (w *wineRuns) compare(t *testing.T, path string, f *pe.File, file []byte) int {
	t.Helper()
	off := 0
	loaders := loaderWritten(f.Headers, file)
	for i := range f.Headers.Sections {
		s := &f.Headers.Sections[i]
		if s.RawSize == 0 || s.RawOffset == 0 {
			continue
		}
		for at := uint32(0); at < s.RawSize; at += 8 {
			n := min(8, s.RawSize-at)
			got, want := f.Data[s.RawOffset+at:s.RawOffset+at+n], file[s.RawOffset+at:s.RawOffset+at+n]
			if s.Writable() {
				w.writable += int(n)
			} else {
				w.readOnly += int(n)
			}
			if bytes.Equal(got, want) {
				continue
			}
			d := 0
			for j := range got {
				if got[j] != want[j] {
					d++
				}
			}
			off += d
			rva := s.VirtualAddress + at
			if !s.Writable() {
				w.readOnlyOff += d
				t.Errorf("%s: % x at RVA %#x of read-only section %s, want % x (known: %v)", filepath.Base(path), got, rva, s.Name, want,
					f.Fidelity.Known(uint64(s.RawOffset+at), uint64(n)))
				continue
			}
			w.writableOff += d
			cause := ""
			if slices.ContainsFunc(loaders, func(r pe.Range) bool { return uint64(rva)+uint64(n) > r.Start && uint64(rva) < r.End }) {
				t.Errorf("%s: % x at RVA %#x, which the loader writes, want % x", filepath.Base(path), got, rva, want)
			} else if cause = w.writtenBy(path, f, file, s, at); cause == "" {
				t.Errorf("%s: % x at RVA %#x of section %s for no known cause, want % x", filepath.Base(path), got, rva, s.Name, want)
			}
			w.count(cause, filepath.Base(path), d)
		}
	}
	head := f.Headers.SizeOfHeaders
	w.readOnly += int(head)
	if o, n := firstDifference(f.Data[:head], file[:head]); n != 0 {
		w.readOnlyOff += n
		off += n
		t.Errorf("%s: %d bytes of the headers differ, the first at %#x", path, n, o)
	}
	return off
}

func (w *wineRuns) count(cause, module string, bytes int) {
	c := w.causes[cause]
	if c == nil {
		c = new(causeCount)
		w.causes[cause] = c
	}
	c.words++
	c.bytes += bytes
	if !slices.Contains(c.modules, module) {
		c.modules = append(c.modules, module)
	}
}

func (w *wineRuns) report(t *testing.T) {
	t.Helper()
	var names []string
	for c := range w.causes {
		names = append(names, c)
	}
	slices.Sort(names)
	total := 0
	for _, name := range names {
		c := w.causes[name]
		total += c.bytes
		slices.Sort(c.modules)
		t.Logf("%5d bytes in %4d words: %s (%v)", c.bytes, c.words, name, c.modules)
	}
	if total != w.writableOff {
		t.Errorf("%d of %d bytes that differ have a cause", total, w.writableOff)
	}
}

// loaderWritten are the RVAs of what a loader writes to in an image, by the file.
func loaderWritten(h *pe.Headers, file []byte) []pe.Range {
	var out []pe.Range
	le := binary.LittleEndian
	at := func(rva uint32, n uint32) []byte {
		for i := range h.Sections {
			if s := &h.Sections[i]; rva >= s.VirtualAddress && rva-s.VirtualAddress+n <= s.RawSize {
				return file[s.RawOffset+rva-s.VirtualAddress:]
			}
		}
		return nil
	}
	add := func(rva uint64, n uint64) { out = append(out, pe.Range{Start: rva, End: rva + n}) }
	if d := h.Dirs[12]; d.RVA != 0 { // import address table
		add(uint64(d.RVA), uint64(d.Size))
	}
	for rva := h.Dirs[13].RVA; rva != 0; rva += 32 { // delay imports
		b := at(rva, 32)
		if b == nil || le.Uint32(b[4:]) == 0 {
			break
		}
		add(uint64(le.Uint32(b[8:])), 8)
		n := uint64(0)
		for names := at(le.Uint32(b[16:]), 8); len(names) >= 8 && le.Uint64(names) != 0; names = names[8:] {
			n += 8
		}
		add(uint64(le.Uint32(b[12:])), n)
	}
	if b := at(h.Dirs[9].RVA, 40); h.Dirs[9].RVA != 0 && b != nil { // TLS index
		add(le.Uint64(b[16:])-h.ImageBase, 4)
	}
	if b := at(h.Dirs[10].RVA, 0x60); h.Dirs[10].RVA != 0 && b != nil { // security cookie
		add(le.Uint64(b[0x58:])-h.ImageBase, 8)
	}
	return out
}

// writtenBy names the cause for which a word differs, as far as it can be shown; "" if it
// cannot. That no loader wrote it is shown elsewhere: where the program has not been
// started, the word does not differ.
func (w *wineRuns) writtenBy(path string, f *pe.File, file []byte, s *pe.Section, at uint32) string {
	img := w.ran.images[path]
	rva := uint64(s.VirtualAddress + at)
	le := binary.LittleEndian
	if rva+8 > uint64(len(img.Mem)) || at+8 > s.RawSize {
		return ""
	}
	want, now := file[s.RawOffset+at:][:8], img.Mem[rva:rva+8]
	value, delta := le.Uint64(now), img.Base-originalBase(file)
	if was := le.Uint64(want); value == was || value == was+delta {
		return "" // memory has what the file has: the rebuild is at fault
	}
	if name := want[1:]; (at+s.VirtualAddress)%16 == 0 && want[0] == 0xff && now[0] == 0 && bytes.Equal(now[1:], name) &&
		channelName(file[s.RawOffset+at+1:]) {
		return "debug channel of Wine's, looked up at first use: flags before its name"
	}
	halves, filled := 0, 0
	for i := 0; i < 8; i += 4 {
		v := le.Uint32(now[i:])
		if v == le.Uint32(want[i:]) {
			continue
		}
		if halves++; le.Uint32(want[i:]) == 0xdeadbeef && (uint64(v) < uint64(len(img.Mem)) || v == -uint32(img.Base)) {
			filled++
		}
	}
	if filled == halves {
		return "placeholder 0xdeadbeef that start-up code replaces by an RVA of the image, or by that of nothing"
	}
	if le.Uint64(want) == 0 && value == textSum(img, le.Uint64(img.Mem[rva-8:])) {
		return "sum of the characters of the text that the word before points to"
	}
	if w.ran.image(value) == img {
		return "address in the image itself"
	}
	if other := w.ran.image(value); other != nil {
		return "address in another image"
	}
	if value >= 0x10000 && w.ran.readable(value) {
		return "address of memory that belongs to no image: heap, stack, tables of the system's"
	}
	other := w.again.images[path]
	if other != nil && bytes.Equal(other.Mem[rva:rva+8], now) {
		return "value of the program's own, the same in another process"
	}
	return ""
}

// channelName reports whether b begins with a name as debug channels have: of at most 14
// letters, digits and underscores, and zeros up to 15 bytes.
func channelName(b []byte) bool {
	n := bytes.IndexByte(b[:15], 0)
	for _, c := range b[:max(n, 0)] {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_') {
			return false
		}
	}
	return n > 0 && len(bytes.Trim(b[n:15], "\x00")) == 0
}

// textSum is the sum of the characters of the text at an address in the image.
func textSum(img *pe.Image, va uint64) uint64 {
	sum := uint64(0)
	for rva := va - img.Base; rva < uint64(len(img.Mem)) && img.Mem[rva] != 0; rva++ {
		sum += uint64(img.Mem[rva])
	}
	return sum
}
