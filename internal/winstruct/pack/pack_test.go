package pack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// some is a pack of n kernels with two layouts.
func some(t testing.TB, n int) []byte {
	t.Helper()
	b := NewBuilder([]string{"_A.B", "sizeof(_A)", "sym(C)"})
	for i := range n {
		k := Kernel{PDB: "ntkrnlmp.pdb", GUID: fmt.Sprintf("%032X", i*i+7), Age: uint32(i), Arch: "x64", Version: fmt.Sprint("10.0.", i),
			Sources: []Source{{"all", "a test", "none"}}, Structs: []string{`["_Z",8,[]]`, fmt.Sprintf(`["_A",%d,[]]`, i%2)},
			Symbols: []Symbol{{"D", uint64(i)}, {"C", uint64(i) << 20}}}
		if err := b.Add(k); err != nil {
			t.Fatal(err)
		}
	}
	data, err := b.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestEveryKernelIsFound(t *testing.T) {
	const n = 100
	p, err := Open(some(t, n))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Check(); err != nil {
		t.Fatal(err)
	}
	if p.Len() != n || p.Layouts() != 2 || !slices.Equal(p.Facts(), []string{"_A.B", "sizeof(_A)", "sym(C)"}) {
		t.Errorf("%s, facts %v", p.Summary(), p.Facts())
	}
	for i := range n {
		guid := fmt.Sprintf("%032X", i*i+7)
		j, ok := p.Find(guid, uint32(i))
		if !ok {
			t.Fatalf("no kernel %d", i)
		}
		k, err := p.Kernel(j)
		if err != nil {
			t.Fatal(err)
		}
		if k.GUID != guid || k.Age != uint32(i) || k.PDB != "ntkrnlmp.pdb" || k.Version != fmt.Sprint("10.0.", i) || k.Sources[0].From != "a test" ||
			!slices.Contains(k.Structs, fmt.Sprintf(`["_A",%d,[]]`, i%2)) || len(k.Structs) != 2 ||
			!slices.Equal(k.Symbols, []Symbol{{"C", uint64(i) << 20}, {"D", uint64(i)}}) {
			t.Errorf("kernel %d is %+v", i, k)
		}
		if _, ok := p.Find(guid, uint32(i)+1); ok {
			t.Errorf("kernel %d is found with another age", i)
		}
	}
	for _, guid := range []string{"", "nothing", strings.Repeat("F", 32), strings.Repeat("0", 32), strings.Repeat("F", 34)} {
		if i, ok := p.Find(guid, 1); ok {
			t.Errorf("%q is kernel %d", guid, i)
		}
	}
}

func TestAPackThatIsDamagedIsRefused(t *testing.T) {
	good := some(t, 9)
	keys := headSize + 4
	facts := keys + 9*keySize
	resealed := func(change func(b []byte) []byte) []byte {
		b := change(bytes.Clone(good))
		seal(b)
		return b
	}
	for _, tt := range []struct {
		name string
		data []byte
		want error
		text string
	}{
		{"nothing", nil, ErrNotPack, ""},
		{"another file", []byte("manifest.json"), ErrNotPack, ""},
		{"its magic alone", good[:8], ErrCorrupt, "8 bytes"},
		{"cut off", good[:len(good)-1], ErrCorrupt, "digest"},
		{"a changed byte", func() []byte { b := bytes.Clone(good); b[len(b)-1] ^= 1; return b }(), ErrCorrupt, "digest"},
		{"another format", func() []byte { b := bytes.Clone(good); b[11] = 9; return b }(), nil, "format 9"},
		{"more kernels than there is room for", resealed(func(b []byte) []byte { be.PutUint32(b[headSize:], 60000); return b }), ErrCorrupt, "60000 kernels"},
		{"one kernel less", resealed(func(b []byte) []byte {
			be.PutUint32(b[headSize:], 8)
			return slices.Delete(b, keys, keys+keySize)
		}), ErrCorrupt, "9 records of 8"},
		{"two kernels in the wrong order", resealed(func(b []byte) []byte {
			copy(b[keys:], good[keys+keySize:keys+2*keySize])
			copy(b[keys+keySize:], good[keys:keys+keySize])
			return b
		}), ErrCorrupt, "not in order"},
		{"one kernel twice", resealed(func(b []byte) []byte { copy(b[keys:], good[keys+keySize:keys+2*keySize]); return b }), ErrCorrupt, "not in order"},
		{"facts beyond the end", resealed(func(b []byte) []byte { be.PutUint32(b[facts+4*3:], 1<<30); return b }), ErrCorrupt, "facts"},
		{"facts that end before they begin", resealed(func(b []byte) []byte { be.PutUint32(b[facts+4:], 99); return b }), ErrCorrupt, "fact 0"},
		{"too many facts", resealed(func(b []byte) []byte { be.PutUint32(b[facts:], maxFacts+1); return b }), ErrCorrupt, "4097 facts"},
		{"something behind the end", resealed(func(b []byte) []byte { return append(b, 0) }), ErrCorrupt, "behind the last"},
		{"more than is read", append(bytes.Clone(good), make([]byte, MaxSize)...), ErrCorrupt, "at most"},
	} {
		p, err := Open(tt.data)
		if err == nil {
			err = p.Check()
		}
		if err == nil || tt.want != nil && !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %v, want %v with %q", tt.name, err, tt.want, tt.text)
		}
	}
}

// A layout may name few structures often, and so be larger than the file by far.
func TestALayoutThatGrowsIsRefused(t *testing.T) {
	layout := func(numbers ...uint64) (b string) {
		for _, n := range numbers {
			b += string(binary.AppendUvarint(nil, n))
		}
		return b
	}
	for _, tt := range []struct {
		name    string
		structs []string
		layout  string
		text    string
	}{
		{"the same structure twice", []string{"x"}, layout(0, 0), "order"},
		{"structures that are not there", []string{"x"}, layout(0, 1), "structure 1 of 1"},
		{"much text", slices.Repeat([]string{strings.Repeat("x", maxText/2)}, 3), layout(0, 1, 2), "bytes"},
		{"a number that is cut off", []string{"x"}, "\x80", "cut off"},
	} {
		b := make([]byte, headSize)
		b = be.AppendUint32(b, 1)
		b = append(b, make([]byte, keySize)...)
		var err error
		for _, items := range [][]string{nil, {""}, {""}, tt.structs, {tt.layout}, {""}, {"\x00\x00\x00\x00\x00\x00"}} {
			if b, err = appendTable(b, items); err != nil {
				t.Fatal(err)
			}
		}
		copy(b, magic)
		be.PutUint32(b[len(magic):], format)
		seal(b)
		p, err := Open(b)
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if k, err := p.Kernel(0); !errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), tt.text) || k.Structs != nil {
			t.Errorf("%s: Kernel = %+v, %v", tt.name, k, err)
		}
		if err := p.Check(); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: Check = %v", tt.name, err)
		}
	}
}

func TestABuilderTakesNoMoreThanIsRead(t *testing.T) {
	good := Kernel{PDB: "ntkrnlmp.pdb", GUID: strings.Repeat("A", 32), Age: 1, Arch: "x64"}
	for name, change := range map[string]func(k *Kernel){
		"a GUID that is none":   func(k *Kernel) { k.GUID = "A" },
		"a long name":           func(k *Kernel) { k.Version = strings.Repeat("1", maxName+1) },
		"a large structure":     func(k *Kernel) { k.Structs = []string{strings.Repeat("x", maxText+1)} },
		"many structures":       func(k *Kernel) { k.Structs = make([]string, 0, maxStructs+1); fill(&k.Structs, maxStructs+1) },
		"many symbols":          func(k *Kernel) { k.Symbols = make([]Symbol, maxSymbols+1) },
		"many sources":          func(k *Kernel) { k.Sources = make([]Source, maxSources+1) },
		"a symbol out of reach": func(k *Kernel) { k.Symbols = []Symbol{{"A", maxRVA + 1}} },
	} {
		b := NewBuilder(nil)
		k := good
		change(&k)
		if err := b.Add(k); err == nil || b.Len() != 0 {
			t.Errorf("%s: Add = %v, %d kernels", name, err, b.Len())
		}
	}
}

func fill(s *[]string, n int) {
	for i := range n {
		*s = append(*s, fmt.Sprint(i))
	}
}

// FuzzOpen opens packs whose digest is right. An error comes without a result, and a pack
// that passes gives every kernel.
func FuzzOpen(f *testing.F) {
	f.Add(some(f, 0))
	f.Add(some(f, 3))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) >= headSize {
			copy(data, magic)
			be.PutUint32(data[len(magic):], format)
			seal(data)
		}
		p, err := Open(data)
		if err != nil {
			if p != nil {
				t.Fatalf("%v with a pack", err)
			}
			return
		}
		checked := p.Check()
		for i := range min(p.Len(), 64) {
			k, err := p.Kernel(i)
			if err != nil {
				if checked == nil {
					t.Fatalf("kernel %d: %v, although the pack was checked", i, err)
				}
				if k.Structs != nil || k.Symbols != nil || k.GUID != "" {
					t.Fatalf("%v with %+v", err, k)
				}
				continue
			}
			if checked != nil {
				continue
			}
			if j, ok := p.Find(k.GUID, k.Age); !ok || j != i {
				t.Fatalf("kernel %d is found as %d, %v", i, j, ok)
			}
		}
	})
}
