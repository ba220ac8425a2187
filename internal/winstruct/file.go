package winstruct

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// A profile file is one JSON object, zstd-compressed with the frame's checksum:
//
//	{"vmav_profile": 1, "pdb": …, "guid": …, "age": …, "arch": …, "version": …, "origin": …,
//	 "types":   [[name, size, [[field, offset, type, {options}], …]], …],
//	 "enums":   {name: {constant: value}},
//	 "symbols": {name: rva}}
//
// "types" is a vtypes profile as it stands: pointers, arrays and bit fields are
// spelled with vtypes' own parsers and options. zstdcat shows it to a person.
const (
	fileVersion = 1
	maxFile     = 64 << 20  // bytes, compressed
	maxFileJSON = 256 << 20 // bytes of JSON
)

type profileFile struct {
	Format  int                         `json:"vmav_profile"`
	PDB     string                      `json:"pdb"`
	GUID    string                      `json:"guid"`
	Age     uint32                      `json:"age"`
	Arch    string                      `json:"arch"`
	Version string                      `json:"version,omitempty"`
	Origin  string                      `json:"origin,omitempty"`
	Types   []fileStruct                `json:"types"`
	Enums   map[string]map[string]int64 `json:"enums,omitempty"`
	Symbols map[string]uint64           `json:"symbols"`
}

// fileStruct is [name, size, [fields]].
type fileStruct struct {
	Name   string
	Size   uint32
	Fields []fileField
}

// fileField is [name, offset, type, {options}].
type fileField Field

// options are the vtypes options of a field, and what vtypes does not know of it.
type options struct {
	Target   string `json:"target,omitempty"`
	Count    uint32 `json:"count,omitempty"`
	Type     string `json:"type,omitempty"` // the word of a bit field; the element of an array
	StartBit *uint8 `json:"start_bit,omitempty"`
	EndBit   uint8  `json:"end_bit,omitempty"`
	Size     uint32 `json:"size,omitempty"` // bytes
}

// MarshalJSON writes the vtypes form.
func (s fileStruct) MarshalJSON() ([]byte, error) {
	return json.Marshal([]any{s.Name, s.Size, s.Fields})
}

// UnmarshalJSON reads the vtypes form.
func (s *fileStruct) UnmarshalJSON(text []byte) error {
	parts := []any{&s.Name, &s.Size, &s.Fields}
	if err := json.Unmarshal(text, &parts); err != nil {
		return err
	}
	if len(parts) != 3 {
		return fmt.Errorf("structure %s: %d elements where 3 belong", s.Name, len(parts))
	}
	return nil
}

// MarshalJSON writes the vtypes form.
func (f fileField) MarshalJSON() ([]byte, error) {
	switch {
	case f.BitCount != 0:
		start := f.BitOffset
		return json.Marshal([]any{f.Name, f.Offset, "BitField", options{Type: f.Type, StartBit: &start, EndBit: start + f.BitCount, Size: f.Size}})
	case f.Type == "pointer":
		return json.Marshal([]any{f.Name, f.Offset, "Pointer", options{Type: f.Target, Size: f.Size}})
	case f.Type == "array":
		return json.Marshal([]any{f.Name, f.Offset, "Array", options{Type: f.Target, Count: f.Count, Size: f.Size}})
	}
	return json.Marshal([]any{f.Name, f.Offset, f.Type, options{Size: f.Size}})
}

// UnmarshalJSON reads the vtypes form.
func (f *fileField) UnmarshalJSON(text []byte) error {
	var o options
	var typ string
	parts := []any{&f.Name, &f.Offset, &typ, &o}
	if err := json.Unmarshal(text, &parts); err != nil {
		return err
	}
	if len(parts) != 4 {
		return fmt.Errorf("field %s: %d elements where 4 belong", f.Name, len(parts))
	}
	f.Size = o.Size
	switch typ {
	case "BitField":
		if o.StartBit == nil || *o.StartBit >= o.EndBit || o.EndBit > 64 {
			return fmt.Errorf("field %s: bit field without proper bits", f.Name)
		}
		f.Type, f.BitOffset, f.BitCount = o.Type, *o.StartBit, o.EndBit-*o.StartBit
	case "Pointer":
		f.Type, f.Target = "pointer", o.Type
	case "Array":
		f.Type, f.Target, f.Count = "array", o.Type, o.Count
	default:
		f.Type = typ
	}
	return nil
}

// Save writes p as a profile file.
func (p *Profile) Save(w io.Writer) error {
	f := profileFile{Format: fileVersion, PDB: p.PDB, GUID: p.GUID, Age: p.Age, Arch: p.Arch,
		Version: p.Version, Origin: p.Origin, Enums: p.enums, Symbols: p.symbols,
		Types: make([]fileStruct, 0, len(p.structs))}
	for _, name := range p.Structs() {
		s := p.structs[name]
		fs := fileStruct{Name: s.Name, Size: s.Size, Fields: make([]fileField, len(s.Fields))}
		for i, fd := range s.Fields {
			fs.Fields[i] = fileField(fd)
		}
		f.Types = append(f.Types, fs)
	}
	text, err := json.Marshal(&f)
	if err != nil {
		return err
	}
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderCRC(true), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	if _, err := z.Write(append(text, '\n')); err != nil {
		z.Close()
		return err
	}
	return z.Close()
}

// Load reads a profile file. The frame's checksum is verified, and everything in
// the file is bounded and checked: it may come from anywhere.
func Load(r io.Reader) (*Profile, error) {
	packed, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(packed) > maxFile {
		return nil, fmt.Errorf("larger than %d bytes", maxFile)
	}
	text, err := decompress(packed)
	if err != nil {
		return nil, fmt.Errorf("decompress: %w", err)
	}
	var f profileFile
	if err := json.Unmarshal(text, &f); err != nil {
		return nil, fmt.Errorf("parse: %w", err)
	}
	return f.profile()
}

var zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd}

func decompress(packed []byte) ([]byte, error) {
	if !bytes.HasPrefix(packed, zstdMagic) {
		if bytes.HasPrefix(packed, []byte("{")) {
			return packed, nil // a person's hand-made profile
		}
		return nil, errors.New("neither zstd nor JSON")
	}
	z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxFileJSON))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	return z.DecodeAll(packed, nil)
}

func (f *profileFile) profile() (*Profile, error) {
	if f.Format != fileVersion {
		return nil, fmt.Errorf("profile format %d: this vmav reads format %d", f.Format, fileVersion)
	}
	p := &Profile{Identity: Identity{PDB: f.PDB, GUID: f.GUID, Age: f.Age}, Arch: f.Arch, Version: f.Version, Origin: f.Origin,
		structs: make(map[string]*Struct, len(f.Types)), enums: f.Enums, symbols: f.Symbols}
	if err := p.Identity.check(); err != nil {
		return nil, err
	}
	if p.Arch != "x64" && p.Arch != "x86" {
		return nil, fmt.Errorf("architecture %q is neither x64 nor x86", p.Arch)
	}
	if len(f.Types) == 0 || len(f.Symbols) == 0 {
		return nil, errors.New("holds no structures or no symbols")
	}
	if len(f.Types) > maxStructs || len(f.Symbols) > maxSymbols {
		return nil, errors.New("more types or symbols than any kernel has")
	}
	for _, fs := range f.Types {
		if fs.Size > maxExtent || len(fs.Fields) > maxFields {
			return nil, fmt.Errorf("structure %s: size %d with %d fields is out of bounds", fs.Name, fs.Size, len(fs.Fields))
		}
		if _, twice := p.structs[fs.Name]; twice {
			return nil, fmt.Errorf("structure %s is defined twice", fs.Name)
		}
		s := &Struct{Name: fs.Name, Size: fs.Size, Fields: make([]Field, len(fs.Fields))}
		for i, fd := range fs.Fields {
			if fd.Offset > maxExtent || fd.Size > maxExtent {
				return nil, fmt.Errorf("structure %s: field %s is out of bounds", fs.Name, fd.Name)
			}
			s.Fields[i] = Field(fd)
		}
		s.sort()
		p.structs[fs.Name] = s
	}
	for name, rva := range f.Symbols {
		if rva > maxExtent {
			return nil, fmt.Errorf("symbol %s: RVA %#x is out of bounds", name, rva)
		}
	}
	return p, nil
}
