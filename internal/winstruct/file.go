package winstruct

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"unicode/utf8"

	"github.com/klauspost/compress/zstd"
)

// A profile file is one JSON object, zstd-compressed where it is stored:
//
//	{"vmav_profile":2,"sha256":"…",
//	"pdb":…,"guid":…,"age":…,"arch":…,"version":…,
//	"sources":[{"of":…,"from":…,"verified":…}],
//	"types":[[name,size,[[field,offset,type,{options}],…]],…],
//	"enums":{name:{constant:value}},
//	"symbols":{name:rva}}
//
// "types" is a vtypes profile as it stands: pointers, arrays and bit fields are
// spelled with vtypes' own parsers and options. The digest is that of all that follows
// the first line. zstdcat shows the file to a person. It may be written by hand, without
// a digest, to be imported.
const (
	fileVersion = 2
	maxFile     = 64 << 20  // bytes, compressed
	maxFileJSON = 256 << 20 // bytes of JSON
)

// fileOptions are the vtypes options of a field, and what vtypes does not know of it.
type fileOptions struct {
	Count    uint32 `json:"count,omitempty"`
	Type     string `json:"type,omitempty"` // the word of a bit field; what an array holds or a pointer points to
	StartBit *uint8 `json:"start_bit,omitempty"`
	EndBit   uint8  `json:"end_bit,omitempty"`
	Size     uint32 `json:"size,omitempty"` // bytes
}

// vtypes is the field as a vtypes definition.
func (f Field) vtypes() []any {
	switch {
	case f.BitCount != 0:
		start := f.BitOffset
		return []any{f.Name, f.Offset, "BitField", fileOptions{Type: f.Type, StartBit: &start, EndBit: start + f.BitCount, Size: f.Size}}
	case f.Type == "pointer":
		return []any{f.Name, f.Offset, "Pointer", fileOptions{Type: f.Target, Size: f.Size}}
	case f.Type == "array":
		return []any{f.Name, f.Offset, "Array", fileOptions{Type: f.Target, Count: f.Count, Size: f.Size}}
	}
	return []any{f.Name, f.Offset, f.Type, fileOptions{Size: f.Size}}
}

// text is the profile as a file, in the clear.
func (p *Profile) text() ([]byte, error) {
	var b bytes.Buffer
	var failed error
	put := func(v any) {
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		if err := enc.Encode(v); err != nil && failed == nil {
			failed = err
		}
		b.Truncate(b.Len() - 1) // the newline of Encode
	}
	member := func(name string, v any) {
		put(name)
		b.WriteByte(':')
		put(v)
		b.WriteByte(',')
	}
	member("pdb", p.PDB)
	member("guid", p.GUID)
	member("age", p.Age)
	member("arch", p.Arch)
	member("version", p.Version)
	b.WriteString("\n\"sources\":")
	put(append([]Source{}, p.Sources...))
	b.WriteString(",\n\"types\":[")
	for i, name := range p.Structs() {
		s := p.structs[name]
		fields := make([][]any, len(s.Fields))
		for j, f := range s.Fields {
			fields[j] = f.vtypes()
		}
		separate(&b, i)
		put([]any{s.Name, s.Size, fields})
	}
	b.WriteString("\n],\n\"enums\":{")
	for i, name := range sortedKeys(p.enums) {
		separate(&b, i)
		put(name)
		b.WriteByte(':')
		put(p.enums[name])
	}
	b.WriteString("\n},\n\"symbols\":{")
	for i, name := range p.Symbols() {
		separate(&b, i)
		put(name)
		b.WriteString(":" + strconv.FormatUint(p.symbols[name], 10))
	}
	b.WriteString("\n}}\n")
	if failed != nil {
		return nil, failed
	}
	sum := sha256.Sum256(b.Bytes())
	return append([]byte(digestLine(sum)), b.Bytes()...), nil
}

func separate(b *bytes.Buffer, i int) {
	if i > 0 {
		b.WriteByte(',')
	}
	b.WriteByte('\n')
}

const (
	digestBefore = `{"vmav_profile":2,"sha256":"`
	digestAfter  = "\",\n"
)

func digestLine(sum [32]byte) string {
	return digestBefore + hex.EncodeToString(sum[:]) + digestAfter
}

// Save writes p as a profile file, compressed.
func (p *Profile) Save(w io.Writer) error { return p.save(w, zstd.SpeedDefault) }

// SaveSmall is Save with the best compression, which takes its time.
func (p *Profile) SaveSmall(w io.Writer) error { return p.save(w, zstd.SpeedBestCompression) }

func (p *Profile) save(w io.Writer, level zstd.EncoderLevel) error {
	text, err := p.text()
	if err != nil {
		return err
	}
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(level), zstd.WithEncoderCRC(true), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	if _, err := z.Write(text); err != nil {
		z.Close()
		return err
	}
	return z.Close()
}

// SaveText writes p as a profile file in the clear.
func (p *Profile) SaveText(w io.Writer) error {
	text, err := p.text()
	if err != nil {
		return err
	}
	_, err = w.Write(text)
	return err
}

// Load reads a profile file. Its digest is verified, and everything in it is bounded
// and checked: it may come from anywhere.
func Load(r io.Reader) (*Profile, error) {
	return load(r, true)
}

// LoadHandMade is Load for a file that may have no digest. One that is there is
// verified.
func LoadHandMade(r io.Reader) (*Profile, error) {
	return load(r, false)
}

func load(r io.Reader, needDigest bool) (*Profile, error) {
	packed, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return nil, err
	}
	return loadBytes(packed, needDigest)
}

func loadBytes(packed []byte, needDigest bool) (*Profile, error) {
	text, err := verified(packed, needDigest)
	if err != nil {
		return nil, err
	}
	p, err := parseFile(text)
	if err != nil {
		return nil, err
	}
	if err := p.check(); err != nil {
		return nil, err
	}
	return p, nil
}

// loadHead is loadBytes without the structures and symbols, which are not looked at.
func loadHead(packed []byte) (*Profile, error) {
	text, err := verified(packed, true)
	if err != nil {
		return nil, err
	}
	head, _, ok := bytes.Cut(text, []byte(",\n\"types\":["))
	if !ok {
		return nil, errors.New("parse: no types")
	}
	p, err := parseFile(append(bytes.Clone(head), '}'))
	if err != nil {
		return nil, err
	}
	if err := p.checkHead(); err != nil {
		return nil, err
	}
	return p, nil
}

// verified is the text of a profile file that has the digest it says.
func verified(packed []byte, needDigest bool) ([]byte, error) {
	if len(packed) > maxFile {
		return nil, fmt.Errorf("larger than %d bytes", maxFile)
	}
	text, err := decompress(packed)
	if err != nil {
		return nil, fmt.Errorf("decompress: %w", err)
	}
	if err := checkDigest(text, needDigest); err != nil {
		return nil, err
	}
	if !utf8.Valid(text) {
		return nil, errors.New("parse: not UTF-8")
	}
	return text, nil
}

// checkDigest holds the text against the digest in its first line.
func checkDigest(text []byte, need bool) error {
	if !bytes.HasPrefix(text, []byte(digestBefore)) {
		if need && !bytes.Contains(text[:min(len(text), 64)], []byte(`"vmav_profile":`)) {
			return errors.New("not a profile")
		}
		if need || bytes.Contains(text[:min(len(text), 256)], []byte(`"sha256"`)) {
			return fmt.Errorf("its first line is not one of format %d with a digest; vmav profile import takes a hand-made one", fileVersion)
		}
		return nil
	}
	n := len(digestBefore) + 64 + len(digestAfter)
	if len(text) < n || string(text[:n]) != digestLine(sha256.Sum256(text[n:])) {
		return errors.New("its content does not have the digest that its first line says: it is damaged or was changed")
	}
	return nil
}

var zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}

// decoder is shared: making one costs more than reading a profile.
var decoder = sync.OnceValues(func() (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(maxFileJSON), zstd.WithDecoderLowmem(true))
})

func decompress(packed []byte) ([]byte, error) {
	if !bytes.HasPrefix(packed, zstdMagic) {
		if bytes.HasPrefix(packed, []byte("{")) {
			return packed, nil
		}
		return nil, errors.New("neither zstd nor JSON")
	}
	z, err := decoder()
	if err != nil {
		return nil, err
	}
	return z.DecodeAll(packed, nil)
}
