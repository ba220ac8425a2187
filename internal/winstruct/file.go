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
//	"pdb":…,"guid":…,"arch":…,"version":…,"age":…,
//	"sources":[{"of":…,"from":…,"verified":…}],
//	"types":[[name,size,[[field,offset,type,{options}],…]],…],
//	"enums":{name:{constant:value}},
//	"symbols":{name:rva},
//	"facts":[name,…]}
//
// "types" is a vtypes profile as it stands: pointers, arrays and bit fields are
// spelled with vtypes' own parsers and options. The digest is that of all that follows
// the first line. zstdcat shows the file to a person. It may be written by hand, without
// a digest, to be imported. Only a profile out of a pack has "facts": see Only.
const (
	fileVersion = 2
	maxFile     = 64 << 20  // bytes, compressed
	maxFileJSON = 256 << 20 // bytes of JSON
)

// appendVtypes writes the field as a vtypes definition. Its options are those of vtypes
// and, beside them, the size of the field in bytes.
func (f Field) appendVtypes(b []byte) []byte {
	b = appendString(append(b, '['), f.Name)
	b = strconv.AppendUint(append(b, ','), uint64(f.Offset), 10)
	number := func(name string, v uint32) {
		b = append(appendString(append(b, ','), name), ':')
		b = strconv.AppendUint(b, uint64(v), 10)
	}
	kind := func(kind, of string) {
		b = appendString(append(b, ','), kind)
		b = appendString(append(b, `,{"type":`...), of)
	}
	switch {
	case f.BitCount != 0:
		kind("BitField", f.Type)
		number("start_bit", uint32(f.BitOffset))
		number("end_bit", uint32(f.BitOffset)+uint32(f.BitCount))
	case f.Type == "pointer":
		kind("Pointer", f.Target)
	case f.Type == "array":
		kind("Array", f.Target)
		number("count", f.Count)
	default:
		b = appendString(append(b, ','), f.Type)
		b = strconv.AppendUint(append(b, `,{"size":`...), uint64(f.Size), 10)
		return append(b, "}]"...)
	}
	number("size", f.Size)
	return append(b, "}]"...)
}

// appendString writes a string of JSON.
func appendString(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c == '"' || c == '\\' || c >= 0x7f {
			text, err := json.Marshal(s)
			if err != nil {
				panic(err) // a string always is
			}
			return append(b, text...)
		}
	}
	return append(append(append(b, '"'), s...), '"')
}

// text is the profile as a file, in the clear.
func (p *Profile) text() ([]byte, error) {
	b, err := p.appendHead(make([]byte, 0, 1<<16))
	if err != nil {
		return nil, err
	}
	for i, name := range p.Structs() {
		b = p.structs[name].appendVtypes(separate(b, i))
	}
	b = append(b, "\n],\n\"enums\":{"...)
	for i, name := range sortedKeys(p.enums) {
		b = append(appendString(separate(b, i), name), ":{"...)
		for j, c := range sortedKeys(p.enums[name]) {
			if j > 0 {
				b = append(b, ',')
			}
			b = strconv.AppendInt(append(appendString(b, c), ':'), p.enums[name][c], 10)
		}
		b = append(b, '}')
	}
	b = append(b, "\n},\n\"symbols\":{"...)
	for i, name := range p.Symbols() {
		b = strconv.AppendUint(append(appendString(separate(b, i), name), ':'), p.symbols[name], 10)
	}
	return p.appendEnd(append(b, "\n}"...)), nil
}

// appendHead writes a file up to its structures.
func (p *Profile) appendHead(b []byte) ([]byte, error) {
	sources, err := json.Marshal(append([]Source{}, p.Sources...))
	if err != nil {
		return nil, err
	}
	b = append(b, make([]byte, digestLength)...)
	for _, m := range [][2]string{{"pdb", p.PDB}, {"guid", p.GUID}, {"arch", p.Arch}, {"version", p.Version}} {
		b = appendString(append(appendString(b, m[0]), ':'), m[1])
		b = append(b, ',')
	}
	b = strconv.AppendUint(append(b, `"age":`...), uint64(p.Age), 10)
	return append(append(append(b, ",\n\"sources\":"...), sources...), headEnd...), nil
}

// appendEnd writes what comes after the symbols, and the digest into the first line.
func (p *Profile) appendEnd(b []byte) []byte {
	if p.facts != nil {
		b = append(b, ",\n\"facts\":["...)
		for i, name := range sortedKeys(p.facts) {
			b = appendString(separate(b, i), name)
		}
		b = append(b, ']')
	}
	b = append(b, "}\n"...)
	copy(b, digestLine(sha256.Sum256(b[digestLength:])))
	return b
}

// appendVtypes writes the structure as a vtypes definition.
func (s *Struct) appendVtypes(b []byte) []byte {
	b = appendString(append(b, '['), s.Name)
	b = append(strconv.AppendUint(append(b, ','), uint64(s.Size), 10), ",["...)
	for j, f := range s.Fields {
		if j > 0 {
			b = append(b, ',')
		}
		b = f.appendVtypes(b)
	}
	return append(b, "]]"...)
}

func separate(b []byte, i int) []byte {
	if i > 0 {
		b = append(b, ',')
	}
	return append(b, '\n')
}

const (
	digestBefore = `{"vmav_profile":2,"sha256":"`
	digestAfter  = "\",\n"
	digestLength = len(digestBefore) + 64 + len(digestAfter)

	// headEnd is the text at which a profile's own description ends; see loadHead.
	headEnd = ",\n\"types\":["
)

func digestLine(sum [32]byte) string {
	return digestBefore + hex.EncodeToString(sum[:]) + digestAfter
}

// Save writes p as a compressed profile file.
func (p *Profile) Save(w io.Writer) error { return p.save(w, zstd.SpeedDefault) }

// SaveSmall does what Save does with the best compression, which is slow.
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

// Load reads a profile file, which may come from anywhere: its digest is verified, and
// everything in it is bounded and checked.
func Load(r io.Reader) (*Profile, error) {
	return load(r, true)
}

// LoadHandMade does what Load does for a file that need not have a digest. If it has one,
// it is verified.
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

// loadHead does what loadBytes does, without parsing structures and symbols.
func loadHead(packed []byte) (*Profile, error) {
	text, err := verified(packed, true)
	if err != nil {
		return nil, err
	}
	head, _, ok := bytes.Cut(text, []byte(headEnd))
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

// verified returns the text of a profile file if its digest fits.
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

// checkDigest compares the text with the digest in its first line.
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
	if len(text) < digestLength || string(text[:digestLength]) != digestLine(sha256.Sum256(text[digestLength:])) {
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
