package image

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vmav.dev/vmav/internal/source"
)

func write(t testing.TB, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// page is a page whose bytes all are c.
func page(c byte) []byte { return bytes.Repeat([]byte{c}, source.PageSize) }

func lime(ranges map[uint64][]byte, order ...uint64) []byte {
	var out []byte
	for _, at := range order {
		h := make([]byte, limeHeader)
		binary.LittleEndian.PutUint32(h, limeMagic)
		binary.LittleEndian.PutUint32(h[4:], 1)
		binary.LittleEndian.PutUint64(h[8:], at)
		binary.LittleEndian.PutUint64(h[16:], at+uint64(len(ranges[at]))-1)
		out = append(append(out, h...), ranges[at]...)
	}
	return out
}

// core is an ELF core with one note and the given segments.
func core(note []byte, ranges map[uint64][]byte, order ...uint64) []byte {
	le := binary.LittleEndian
	n := len(order) + 1
	head := make([]byte, 64+56*n)
	copy(head, "\x7fELF\x02\x01\x01")
	le.PutUint16(head[16:], 4)
	le.PutUint16(head[18:], 62)
	le.PutUint32(head[20:], 1)
	le.PutUint64(head[32:], 64)
	le.PutUint16(head[52:], 64)
	le.PutUint16(head[54:], 56)
	le.PutUint16(head[56:], uint16(n))
	put := func(i int, typ uint32, off, paddr, size uint64) {
		p := head[64+56*i:]
		le.PutUint32(p, typ)
		le.PutUint64(p[8:], off)
		le.PutUint64(p[24:], paddr)
		le.PutUint64(p[32:], size)
		le.PutUint64(p[40:], size)
	}
	body := append([]byte(nil), note...)
	put(0, 4, uint64(len(head)), 0, uint64(len(note)))
	for i, at := range order {
		put(i+1, 1, uint64(len(head)+len(body)), at, uint64(len(ranges[at])))
		body = append(body, ranges[at]...)
	}
	return append(head, body...)
}

// core32 is what QEMU writes of a guest in 32-bit mode.
func core32(note []byte, ranges map[uint64][]byte, order ...uint64) []byte {
	le := binary.LittleEndian
	n := len(order) + 1
	head := make([]byte, 52+32*n)
	copy(head, "\x7fELF\x01\x01\x01")
	le.PutUint16(head[16:], 4)
	le.PutUint16(head[18:], 3)
	le.PutUint32(head[20:], 1)
	le.PutUint32(head[28:], 52)
	le.PutUint16(head[40:], 52)
	le.PutUint16(head[42:], 32)
	le.PutUint16(head[44:], uint16(n))
	put := func(i int, typ, off uint32, paddr uint64, size int) {
		p := head[52+32*i:]
		le.PutUint32(p, typ)
		le.PutUint32(p[4:], off)
		le.PutUint32(p[12:], uint32(paddr))
		le.PutUint32(p[16:], uint32(size))
		le.PutUint32(p[20:], uint32(size))
	}
	body := append([]byte(nil), note...)
	put(0, 4, uint32(len(head)), 0, len(note))
	for i, at := range order {
		put(i+1, 1, uint32(len(head)+len(body)), at, len(ranges[at]))
		body = append(body, ranges[at]...)
	}
	return append(head, body...)
}

func qemuNote(cr3, rip uint64) []byte {
	le := binary.LittleEndian
	desc := make([]byte, 8+18*8+240+48)
	le.PutUint32(desc, 1)
	le.PutUint64(desc[8+16*8:], rip)
	le.PutUint32(desc[8+18*8:], 0x33)
	le.PutUint64(desc[8+18*8+240:], 0x80050033)
	le.PutUint64(desc[8+18*8+240+24:], cr3)
	le.PutUint64(desc[8+18*8+240+40:], 0xfffff80012345000)
	out := le.AppendUint32(nil, 5)
	out = le.AppendUint32(out, uint32(len(desc)))
	out = le.AppendUint32(out, 0)
	out = append(out, "QEMU\x00\x00\x00\x00"...)
	return append(out, desc...)
}

func TestFormsAreRecognisedAndRead(t *testing.T) {
	low, high := uint64(0x1000), uint64(0x100000000)
	ranges := map[uint64][]byte{low: append(page('a'), page('b')...), high: page('c')}
	for _, tt := range []struct {
		name, form string
		data       []byte
		highIsHole bool
	}{
		{"raw", "raw", append(page(0), ranges[low]...), true},
		{"LiME", "LiME", lime(ranges, low, high), false},
		{"ELF core", "ELF core", core(qemuNote(0x1ad000, 0x1234), ranges, high, low), false},
		{"ELF core of 32-bit mode", "ELF core", core32(qemuNote(0x185000, 0x1234), ranges, low), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			im, err := Open(write(t, tt.data))
			if err != nil {
				t.Fatal(err)
			}
			defer im.Close()
			if got := im.Info().Form; got != tt.form {
				t.Errorf("form %q, want %q", got, tt.form)
			}
			buf := make([]byte, 2)
			if err := im.ReadPhys(buf, 0x1fff); err != nil || string(buf) != "ab" {
				t.Errorf("across a page: %q, %v", buf, err)
			}
			err = im.ReadPhys(buf, high)
			if tt.highIsHole != errors.Is(err, source.ErrHole) || !tt.highIsHole && string(buf) != "cc" {
				t.Errorf("at 4 GiB: %q, %v", buf, err)
			}
			if err := im.ReadPhys(buf, 0x2fff); !errors.Is(err, source.ErrHole) {
				t.Errorf("over the end of a range: %v, want a hole", err)
			}
			im.Close()
			if err := im.ReadPhys(buf, low); !errors.Is(err, source.ErrClosed) {
				t.Errorf("after Close: %v", err)
			}
		})
	}
}

func TestCoreCarriesRegisters(t *testing.T) {
	notes := append(qemuNote(0x1ad000, 0x1234), qemuNote(0x2000, 0x77)...)
	for name, data := range map[string][]byte{"64-bit": core(notes, map[uint64][]byte{0: page(1)}, 0),
		"32-bit": core32(notes, map[uint64][]byte{0: page(1)}, 0)} {
		im, err := Open(write(t, data))
		if err != nil {
			t.Fatal(err)
		}
		defer im.Close()
		regs, err := im.Registers(context.Background())
		if err != nil || len(regs) != 2 {
			t.Fatalf("%s: Registers = %v, %v", name, regs, err)
		}
		r := regs[0]
		if r.CR3 != 0x1ad000 || r.RIP != 0x1234 || r.CPL != 3 || r.CR0 != 0x80050033 || r.KernelGSBase != 0xfffff80012345000 || regs[1].CPU != 1 {
			t.Errorf("%s: registers %+v", name, regs)
		}
	}
}

func TestDamagedFilesAreRefusedByName(t *testing.T) {
	full := core(qemuNote(1, 2), map[uint64][]byte{0: append(page(1), page(2)...)}, 0)
	overlap := lime(map[uint64][]byte{0: append(page(1), page(2)...), 0x1000: page(3)}, 0, 0x1000)
	for _, tt := range []struct {
		name string
		data []byte
		want string
	}{
		{"empty", nil, "less than a page"},
		{"short", []byte("MZ"), "less than a page"},
		{"cut core", full[:len(full)-100], "cut off"},
		{"cut header", full[:50], "ELF header"},
		{"overlap", overlap, "overlap"},
		{"cut LiME", overlap[:len(overlap)-100], "cut off"},
		{"kdump", append([]byte("KDUMP   "), page(0)...), "kdump"},
		{"crash dump", append([]byte("PAGEDU64"), page(0)...), "crash dump"},
	} {
		im, err := Open(write(t, tt.data))
		if err == nil {
			im.Close()
			t.Errorf("%s: opens", tt.name)
		} else if !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q in it", tt.name, err, tt.want)
		}
	}
}

func TestTruncationWhileInUseIsAnError(t *testing.T) {
	path := write(t, append(page(1), page(2)...))
	im, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	if err := os.Truncate(path, 100); err != nil {
		t.Fatal(err)
	}
	if err := im.ReadPhys(make([]byte, 8), 0x1000); err == nil || !strings.Contains(err.Error(), "truncated") {
		t.Errorf("ReadPhys of a truncated file = %v", err)
	}
}

func TestReadingDoesNotAllocate(t *testing.T) {
	im, err := Open(write(t, append(page(1), page(2)...)))
	if err != nil {
		t.Fatal(err)
	}
	defer im.Close()
	buf := make([]byte, source.PageSize)
	if n := testing.AllocsPerRun(100, func() {
		if err := im.ReadPhys(buf, 0x1000); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations a read", n)
	}
}

func FuzzOpen(f *testing.F) {
	f.Add(core(qemuNote(1, 2), map[uint64][]byte{0: page(1)}, 0))
	f.Add(core32(qemuNote(1, 2), map[uint64][]byte{0: page(1)}, 0))
	f.Add(lime(map[uint64][]byte{0x1000: page(1)}, 0x1000))
	f.Add(page(7))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		im, err := Open(path)
		if (im == nil) == (err == nil) {
			t.Fatalf("Open = %v, %v", im, err)
		}
		if err != nil {
			return
		}
		defer im.Close()
		buf := make([]byte, source.PageSize)
		for _, r := range im.Ranges() {
			if err := im.ReadPhys(buf, r.End()-source.PageSize); err != nil {
				t.Fatalf("last page of %+v: %v", r, err)
			}
		}
	})
}
