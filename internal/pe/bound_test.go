package pe_test

import (
	"bytes"
	"encoding/binary"
	"math/rand"
	"strings"
	"testing"

	"vmav.dev/vmav/internal/pe"
	"vmav.dev/vmav/internal/pe/petest"
)

// preferredOf is the address that an export has at its module's preferred base, for files
// that are bound to it.
func preferredOf(e petest.Export, is64 bool) uint64 {
	h := uint64(e.Ordinal)*16 + 16
	for _, c := range []byte(e.Module + "!" + e.Name) {
		h = (h*131 + uint64(c)) & 0xffffff
	}
	if is64 {
		return 0x7ff700000000 + h
	}
	return 0x7c000000 + h
}

// bind binds a file to the modules that it imports from, as bind.exe does: the address
// tables get the addresses that they would have if no module were moved. It is nil where
// the file has no names beside its address tables, or imports nothing.
func bind(file []byte, h *pe.Headers) []byte {
	le := binary.LittleEndian
	out := bytes.Clone(file)
	at := func(rva uint32) uint32 {
		for i := range h.Sections {
			if s := &h.Sections[i]; rva >= s.VirtualAddress && rva-s.VirtualAddress < s.RawSize {
				return s.RawOffset + rva - s.VirtualAddress
			}
		}
		return 0
	}
	text := func(rva uint32) string {
		b := file[at(rva):]
		return string(b[:max(bytes.IndexByte(b, 0), 0)])
	}
	size := uint32(4)
	if h.PE64 {
		size = 8
	}
	get := func(b []byte) uint64 {
		if h.PE64 {
			return le.Uint64(b)
		}
		return uint64(le.Uint32(b))
	}
	slots := 0
	for d := at(h.Dirs[1].RVA); d != 0 && le.Uint32(file[d+12:]) != 0; d += 20 {
		names, addrs := at(le.Uint32(file[d:])), at(le.Uint32(file[d+16:]))
		if le.Uint32(file[d:]) == 0 || names == 0 || addrs == 0 {
			return nil
		}
		module := text(le.Uint32(file[d+12:]))
		for ; get(file[names:]) != 0; names, addrs = names+size, addrs+size {
			v := get(file[names:])
			e := petest.Export{Module: module, Ordinal: uint16(v)}
			if v>>(8*size-1) == 0 {
				e = petest.Export{Module: module, Name: text(uint32(v) + 2)}
			}
			if p := preferredOf(e, h.PE64); h.PE64 {
				le.PutUint64(out[addrs:], p)
			} else {
				le.PutUint32(out[addrs:], uint32(p))
			}
			slots++
		}
		le.PutUint32(out[d+4:], h.TimeDateStamp|1) // the module's, when it was bound
	}
	if slots == 0 {
		return nil
	}
	return out
}

// TestBoundCorpus binds files of the corpus to what they import, maps them where nothing is
// where they were bound to, and rebuilds them: with the modules at hand byte for byte; with
// nothing at hand what differs is the bound addresses, and the record says so.
func TestBoundCorpus(t *testing.T) {
	l := &petest.Loader{Rand: rand.New(rand.NewSource(14)), ResolveDelay: true}
	files, same, slots, kinds := 0, 0, 0, map[bool]int{}
	var rb pe.Rebuilder
	sample(t, 5, l, func(path string, plain []byte, _ *petest.Mapped) {
		h, err := pe.ParseHeaders(plain)
		if err != nil || isARM64(plain) || h.SectionAlignment < pe.PageSize || h.Sections[0].Name == "UPX0" || strings.Contains(path, "clamav-testfiles") {
			return // packed files have no tables of their own
		}
		file := bind(plain, h)
		if file == nil {
			return
		}
		m, err := l.Map(file, l.Base(h.PE64))
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		files++
		kinds[h.PE64]++
		opt := pe.Options{PreferredBase: originalBase(file), ResolveExport: func(va uint64) []pe.Symbol {
			e, ok := l.Lookup(va)
			if !ok {
				return nil
			}
			return []pe.Symbol{{Module: e.Module, Name: e.Name, Ordinal: e.Ordinal, Preferred: preferredOf(e, h.PE64)}}
		}}
		f, err := rb.Rebuild(imageOf(path, m), opt)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		if off, n := firstDifference(f.Data, file); n == 0 {
			same++
		} else if causes := causesOf(f, file); causes["none"]+causes[string(pe.CauseBound)] != 0 {
			t.Errorf("%s: %d bytes differ, the first at %#x: %v", path, n, off, causes)
		}
		slots += f.Fidelity.Imports.Bound
		opt.ResolveExport = nil
		if f, err = rb.Rebuild(imageOf(path, m), opt); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		for cause, n := range causesOf(f, file) {
			if cause != string(pe.CauseBound) && cause != string(pe.CauseGuard) {
				t.Errorf("%s, with no module at hand: %d bytes: %s", path, n, cause)
			}
		}
	})
	t.Logf("%d of %d files with %d bound slots byte-identical; of them 64-bit %d, 32-bit %d", same, files, slots, kinds[true], kinds[false])
	if same*100 < files*99 || files < 80 || kinds[false] < 5 || slots < 1000 {
		t.Errorf("only %d files, %d slots", files, slots)
	}
}
