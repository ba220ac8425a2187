package cab

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vmav.dev/vmav/internal/winstruct/cab/cabtest"
)

// material is data as PDBs hold it: runs, text that comes again, and noise.
func material(n int) []byte {
	rng := rand.New(rand.NewPCG(7, uint64(n)))
	var out []byte
	for len(out) < n {
		switch rng.IntN(5) {
		case 0:
			out = append(out, bytes.Repeat([]byte{byte(rng.IntN(4))}, rng.IntN(600))...)
		case 1:
			for range rng.IntN(200) {
				out = append(out, byte(rng.Uint32()))
			}
		case 2:
			if len(out) > 100 {
				from := rng.IntN(len(out) - 50)
				out = append(out, out[from:min(len(out), from+rng.IntN(3000))]...)
			}
		case 3:
			out = append(out, 0xe8, byte(rng.Uint32()), byte(rng.Uint32()), byte(rng.IntN(2)), 0)
		default:
			out = fmt.Appendf(out, "_MMPTE_%d PsActiveProcessHead ", rng.IntN(50))
		}
	}
	return out[:n]
}

type example struct {
	name string
	cab  []byte
	want []byte
}

func examples() (out []example) {
	for _, n := range []int{1, 2, 100, maxBlock - 1, maxBlock, maxBlock + 1, 200001} {
		data := material(n)
		out = append(out,
			example{fmt.Sprintf("stored/%d", n), cabtest.Stored("ntkrnlmp.pdb", data, false), data},
			example{fmt.Sprintf("reserve/%d", n), cabtest.Stored("ntkrnlmp.pdb", data, true), data},
			example{fmt.Sprintf("mszip/%d", n), cabtest.MSZIP("ntkrnlmp.pdb", data), data})
		for _, window := range []uint{15, 18, 21} {
			for _, block := range []int{1 << 20, 50001, 7001} {
				for _, calls := range []bool{false, true} {
					out = append(out, example{fmt.Sprintf("lzx%d/%d/%d/calls=%v", window, n, block, calls),
						cabtest.LZX("ntkrnlmp.pdb", data, window, calls, block), data})
				}
			}
		}
	}
	return out
}

func TestExtractGivesWhatWasCompressed(t *testing.T) {
	for _, ex := range examples() {
		var got bytes.Buffer
		name, size, err := Extract(&got, bytes.NewReader(ex.cab), 1<<30)
		if err != nil || name != "ntkrnlmp.pdb" || size != int64(len(ex.want)) || !bytes.Equal(got.Bytes(), ex.want) {
			at := 0
			for at < min(got.Len(), len(ex.want)) && got.Bytes()[at] == ex.want[at] {
				at++
			}
			t.Errorf("%s: %q of %d bytes, %v; the first %d are right", ex.name, name, size, err, at)
		}
	}
}

// The encoder of this test could share a mistake with the decoder; cabextract, which
// packaging/deps.sh installs, shares nothing with either.
func TestCabextractReadsTheSame(t *testing.T) {
	dir := t.TempDir()
	for i, ex := range examples() {
		path := filepath.Join(dir, fmt.Sprintf("%d.cab", i))
		if err := os.WriteFile(path, ex.cab, 0o644); err != nil {
			t.Fatal(err)
		}
		got, err := exec.Command("cabextract", "-q", "-p", path).Output()
		if err != nil || !bytes.Equal(got, ex.want) {
			t.Errorf("%s: cabextract gives %d bytes, %v", ex.name, len(got), err)
		}
		os.Remove(path)
	}
}

func TestDamageIsNoticed(t *testing.T) {
	data := material(60000)
	for _, ex := range []example{{"stored", cabtest.Stored("a.pdb", data, false), data}, {"mszip", cabtest.MSZIP("a.pdb", data), data},
		{"lzx", cabtest.LZX("a.pdb", data, 16, true, 9001), data}} {
		for at := 0; at < len(ex.cab); at += 991 {
			if _, _, err := Extract(&bytes.Buffer{}, bytes.NewReader(ex.cab[:at]), 1<<30); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNotCabinet) {
				t.Errorf("%s cut off at %d: %v", ex.name, at, err)
			}
			damaged := bytes.Clone(ex.cab)
			damaged[at] ^= 0x40
			var got bytes.Buffer
			if _, _, err := Extract(&got, bytes.NewReader(damaged), 1<<30); err == nil && !bytes.Equal(got.Bytes(), ex.want) {
				t.Errorf("%s: a flipped bit at %d went unnoticed", ex.name, at)
			}
		}
	}
	if _, _, err := Extract(&bytes.Buffer{}, bytes.NewReader(cabtest.Stored("a.pdb", data, false)), 1000); !errors.Is(err, ErrUnsupported) ||
		!strings.Contains(err.Error(), "60000") {
		t.Errorf("a file beyond the bound: %v", err)
	}
	quantum := cabtest.Stored("a.pdb", data, false)
	quantum[headerSize+6] = 2
	if _, _, err := Extract(&bytes.Buffer{}, bytes.NewReader(quantum), 1<<30); !errors.Is(err, ErrUnsupported) {
		t.Errorf("Quantum: %v", err)
	}
}

func FuzzExtract(f *testing.F) {
	data := material(3000)
	f.Add(cabtest.Stored("a.pdb", data, true))
	f.Add(cabtest.MSZIP("a.pdb", data))
	f.Add(cabtest.LZX("a.pdb", data, 15, true, 701))
	f.Fuzz(func(t *testing.T, data []byte) {
		var out bytes.Buffer
		_, size, err := Extract(&out, bytes.NewReader(data), 1<<20)
		if err == nil && int64(out.Len()) != size || out.Len() > 1<<20 {
			t.Fatalf("%d bytes of %d, %v", out.Len(), size, err)
		}
	})
}

// FuzzLZX feeds the decoder without the checksums around it.
func FuzzLZX(f *testing.F) {
	for _, block := range []int{1 << 20, 301} {
		cab := cabtest.LZX("a", material(2000), 15, true, block)
		f.Add(cab[headerSize+8+16+2+8:], uint16(2000))
	}
	f.Fuzz(func(t *testing.T, data []byte, size uint16) {
		z, err := newLZX(15)
		if err != nil {
			t.Fatal(err)
		}
		n := int(size)%maxBlock + 1
		for range 3 {
			out, err := z.block(data, n)
			if err == nil && len(out) != n {
				t.Fatalf("%d bytes, want %d", len(out), n)
			}
			if err != nil {
				return
			}
		}
	})
}

func BenchmarkLZX(b *testing.B) {
	data := material(4 << 20)
	cab := cabtest.LZX("a", data, 21, false, 1<<18)
	b.SetBytes(int64(len(data)))
	for range b.N {
		if _, _, err := Extract(&bytes.Buffer{}, bytes.NewReader(cab), 1<<30); err != nil {
			b.Fatal(err)
		}
	}
}
