package window

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"

	"vmav.dev/vmav/internal/source"
)

func TestAWindowIsSharedAndKeepsItsSize(t *testing.T) {
	w, err := New(8192)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	other, err := Open(int(w.File().Fd()), 8192)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	copy(other.Bytes()[4096:], "here")
	if !bytes.HasPrefix(w.Bytes()[4096:], []byte("here")) {
		t.Error("what one side writes the other does not see")
	}
	// A window that shrinks would fault in the other process.
	for _, size := range []int64{0, 4096, 16384} {
		if err := unix.Ftruncate(int(w.File().Fd()), size); err != unix.EPERM {
			t.Errorf("resize to %d: %v", size, err)
		}
	}
}

func TestGuestMemoryInAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mem")
	text := append(bytes.Repeat([]byte{'h'}, 32), bytes.Repeat([]byte{1}, 4096)...)
	text = append(text, bytes.Repeat([]byte{2}, 4096)...)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mem := make([]byte, 256)
	runs := []source.Shared{{Range: source.Range{Start: 0x10000, Size: 4096}, Offset: 32 + 4096}, {Range: source.Range{Start: 0x1000, Size: 4096}, Offset: 32},
		{Range: source.Range{Start: 1 << 63, Size: 1 << 63}}}
	if !EncodeRanges(mem, runs) || EncodeRanges(mem[:40], runs) {
		t.Error("room for runs is misjudged")
	}
	got, err := DecodeRanges(mem)
	if err != nil || !reflect.DeepEqual(got, runs) {
		t.Fatalf("%v, %v", got, err)
	}
	g := Map(int(f.Fd()), got)
	buf := make([]byte, 16)
	for _, c := range []struct {
		addr uint64
		want byte // 0 for not there
	}{{0, 0}, {0x1000, 1}, {0x1ff0, 1}, {0x1ff1, 0}, {0x2000, 0}, {0x10000, 2}, {0x10ff0, 2}, {0x11000, 0}, {^uint64(0), 0}} {
		ok := g.Read(buf, c.addr)
		if ok != (c.want != 0) || ok && !bytes.Equal(buf, bytes.Repeat([]byte{c.want}, 16)) {
			t.Errorf("%#x: %v, %v", c.addr, ok, buf)
		}
	}
	// A page that goes costs an answer.
	if err := os.Truncate(path, 32); err != nil {
		t.Fatal(err)
	}
	if g.Read(buf, 0x10000) {
		t.Error("read what is gone")
	}
}
