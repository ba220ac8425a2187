package evidence

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"testing"
)

// countingWriter counts, and holds nothing.
type countingWriter struct{ n uint64 }

func (c *countingWriter) Write(p []byte) (int, error) {
	c.n += uint64(len(p))
	return len(p), nil
}

// An error goes with no result; a result's content is what its header says; no more is
// written than an item may have. The last sum is put right, so that the fuzzer gets past it.
func FuzzOpenItem(f *testing.F) {
	s, err := Open(f.TempDir(), Limits{})
	if err != nil {
		f.Fatal(err)
	}
	for _, content := range [][]byte{nil, []byte("content"), make([]byte, 100000)} {
		sum, err := s.Put(Header{Kind: "scanned", Image: "x.exe"}, content)
		if err != nil {
			f.Fatal(err)
		}
		b, err := os.ReadFile(s.path(sum))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, true)
		f.Add(b[:len(b)-1], false)
	}
	f.Add([]byte(magic), true)
	f.Fuzz(func(t *testing.T, b []byte, right bool) {
		if right && len(b) >= prefixSize+trailerSize {
			b = bytes.Clone(b)
			n := len(b) - trailerSize
			if head := binary.LittleEndian.Uint32(b[12:]); uint64(head) < uint64(n-prefixSize) {
				binary.LittleEndian.PutUint64(b[16:], uint64(n-prefixSize)-uint64(head))
			}
			sum := sha256.Sum256(b[:n])
			copy(b[n:], sum[:])
		}
		var w countingWriter
		sum := sha256.New()
		h, err := openItem(bytes.NewReader(b), int64(len(b)), io.MultiWriter(&w, sum))
		if w.n > MaxContent+1 {
			t.Fatalf("%d bytes written", w.n)
		}
		if err != nil {
			if h != (Header{}) {
				t.Fatalf("%+v with the error %v", h, err)
			}
			return
		}
		if h.Size != w.n || h.SHA256 != fmt.Sprintf("%x", sum.Sum(nil)) {
			t.Fatalf("%+v of %d bytes", h, w.n)
		}
	})
}
