package source

import (
	"bytes"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// A page of a mapping that has gone is a false answer, and the program lives.
func TestCopyViewOutlivesItsPages(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(bytes.Repeat([]byte{0x5a}, 2*PageSize)); err != nil {
		t.Fatal(err)
	}
	view, err := unix.Mmap(int(f.Fd()), 0, 2*PageSize, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(view)
	p := make([]byte, 2*PageSize)
	if !CopyView(p, view) || p[2*PageSize-1] != 0x5a {
		t.Error("a view that is there cannot be read")
	}
	if err := f.Truncate(PageSize); err != nil {
		t.Fatal(err)
	}
	if CopyView(p, view) {
		t.Error("a view without its second page was read")
	}
	if !CopyView(p[:PageSize], view[:PageSize]) {
		t.Error("its first page cannot be read any more")
	}
	if CopyView(p, view[:PageSize]) {
		t.Error("a view of one page filled two")
	}
	if n := testing.AllocsPerRun(100, func() { CopyView(p[:PageSize], view[:PageSize]) }); n != 0 {
		t.Errorf("%v allocations a copy", n)
	}
}
