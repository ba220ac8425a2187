package winstruct

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/ulikunitz/xz"
)

// Bounds on an import. Symbol files of Windows kernels stay below a tenth of each.
const (
	maxISF     = 256 << 20 // bytes of JSON after decompression
	maxStructs = 1 << 16
	maxFields  = 1 << 14 // of one structure
	maxSymbols = 1 << 20
	maxExtent  = 1 << 31 // bytes: the largest size or offset believed
)

// guidPattern is the GUID of an Identity.
var guidPattern = regexp.MustCompile(`^[0-9A-F]{32}$`)

// isfType is a type of Volatility 3's intermediate symbol format.
type isfType struct {
	Kind        string
	Name        string
	Subtype     *isfType
	Type        *isfType
	Count       uint32
	BitLength   uint8
	BitPosition uint8
}

// isfFile has the parts of a symbol file that are read.
type isfFile struct {
	format, guid, database string
	age, machine           uint32
	version                [4]uint32 // major, minor, build, revision; all zero for none
	bases                  map[string]uint32
	structs                map[string]isfStruct
	enums                  map[string]isfEnum
	symbols                map[string]uint64
}

type isfStruct struct {
	size   uint32
	fields []isfField
}

type isfField struct {
	name   string
	offset uint32
	typ    isfType
}

type isfEnum struct {
	size      uint32
	constants map[string]int64
}

// ImportISFFile makes a profile from a Volatility 3 symbol file, plain or xz-compressed.
func ImportISFFile(path string) (*Profile, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p, err := ImportISF(f)
	if err != nil {
		return nil, fmt.Errorf("import symbol file %s: %w", path, err)
	}
	return p, nil
}

// ImportISF makes a profile from a symbol file in Volatility 3's intermediate symbol format
// (schema 6.x), plain or xz-compressed. The input is not trusted: everything is bounded,
// and a file that contradicts itself is refused.
func ImportISF(r io.Reader) (*Profile, error) {
	br := bufio.NewReaderSize(r, 1<<16)
	if magic, _ := br.Peek(6); string(magic) == "\xfd7zXZ\x00" {
		x, err := xz.ReaderConfig{DictCap: 1 << 26, SingleStream: true}.NewReader(br)
		if err != nil {
			return nil, fmt.Errorf("open xz stream: %w", err)
		}
		r = x
	} else {
		r = br
	}
	text, err := io.ReadAll(io.LimitReader(r, maxISF+1))
	if err != nil {
		return nil, fmt.Errorf("decompress: %w", err)
	}
	if len(text) > maxISF {
		return nil, fmt.Errorf("larger than %d bytes", maxISF)
	}
	if !utf8.Valid(text) {
		return nil, errors.New("parse: not UTF-8")
	}
	f, err := parseISF(text)
	if err != nil {
		return nil, fmt.Errorf("parse: %w", err)
	}
	return f.profile()
}

func (f *isfFile) profile() (*Profile, error) {
	if !strings.HasPrefix(f.format, "6.") {
		return nil, fmt.Errorf("format %q: only 6.x of the intermediate symbol format is known", f.format)
	}
	p := &Profile{
		Identity: Identity{PDB: strings.ToLower(f.database), GUID: strings.ToUpper(f.guid), Age: f.age},
		Sources:  []Source{{Of: "all", From: "symbol file of Volatility 3", Verified: VerifiedIdentity}},
		structs:  make(map[string]*Struct, len(f.structs)),
		enums:    make(map[string]map[string]int64, len(f.enums)),
		symbols:  f.symbols,
	}
	switch f.machine {
	case 0x8664:
		p.Arch = ArchX64
	case 0x14c:
		p.Arch = ArchX86
	default:
		return nil, fmt.Errorf("machine type %#x is neither x86 nor x64", f.machine)
	}
	if v := f.version; v[0] != 0 {
		p.Version = fmt.Sprintf("%d.%d.%d.%d", v[0], v[1], v[2], v[3])
	}
	sizes := make(map[string]uint32, len(f.bases)+len(f.structs))
	for name, size := range f.bases {
		sizes[name] = size
	}
	for name, e := range f.enums {
		p.enums[name] = e.constants
		sizes["enum "+name] = e.size
	}
	for name, u := range f.structs {
		sizes["struct "+name] = u.size
	}
	for name, u := range f.structs {
		s := &Struct{Name: name, Size: u.size, Fields: make([]Field, 0, len(u.fields))}
		for i := range u.fields {
			fd := &u.fields[i]
			field, err := fd.field(sizes)
			if err != nil {
				return nil, fmt.Errorf("structure %s: field %s: %w", name, fd.name, err)
			}
			s.Fields = append(s.Fields, field)
		}
		s.sort()
		p.structs[name] = s
	}
	if err := p.check(); err != nil {
		return nil, err
	}
	return p, nil
}

// Check returns an error if id cannot identify a PDB: its name must be a file name, and its
// GUID must have the form of one.
func (id Identity) Check() error {
	strange := func(r rune) bool { return r < ' ' || r == '/' || r == '\\' || r == 0x7f }
	if id.PDB == "" || len(id.PDB) > 255 || id.PDB[0] == '.' || strings.ContainsFunc(id.PDB, strange) {
		return fmt.Errorf("PDB name %q is not a file name", id.PDB)
	}
	if !guidPattern.MatchString(id.GUID) {
		return fmt.Errorf("GUID %q is not 32 hexadecimal digits", id.GUID)
	}
	return nil
}

// field turns a typed ISF field into a Field. Offsets that run over the end of
// a structure are legal in ISF (unions of variable arrays), so only their bound is
// checked.
func (fd *isfField) field(sizes map[string]uint32) (Field, error) {
	t := &fd.typ
	f := Field{Name: fd.name, Offset: fd.offset}
	switch t.Kind {
	case "bitfield":
		if t.Type == nil || t.BitLength == 0 || uint(t.BitPosition)+uint(t.BitLength) > 64 {
			return Field{}, fmt.Errorf("bit field of %d bits at %d", t.BitLength, t.BitPosition)
		}
		f.BitOffset, f.BitCount = t.BitPosition, t.BitLength
		f.Type = t.Type.Name
		f.Size, _ = t.Type.size(sizes, 0)
	case "pointer":
		f.Type = "pointer"
		if t.Subtype != nil {
			f.Target = t.Subtype.spell(0)
		}
		f.Size = sizes["pointer"]
	case "array":
		f.Type = "array"
		if t.Subtype != nil {
			f.Target = t.Subtype.spell(0)
		}
		f.Count = t.Count
		size, ok := t.size(sizes, 0)
		if !ok {
			return Field{}, errors.New("array is out of bounds")
		}
		f.Size = size
	default:
		f.Type = t.Name
		if t.Kind == "function" {
			f.Type = "function"
		}
		f.Size, _ = t.size(sizes, 0)
	}
	return f, nil
}

// size returns the size of the type in bytes; ok is false if it is out of bounds.
func (t *isfType) size(sizes map[string]uint32, depth int) (uint32, bool) {
	if depth > 8 {
		return 0, false
	}
	switch t.Kind {
	case "base":
		return sizes[t.Name], true
	case "pointer":
		return sizes["pointer"], true
	case "enum":
		return sizes["enum "+t.Name], true
	case "struct", "union", "class":
		return sizes["struct "+t.Name], true
	case "array":
		if t.Subtype == nil {
			return 0, false
		}
		one, ok := t.Subtype.size(sizes, depth+1)
		if !ok || uint64(one)*uint64(t.Count) > maxExtent {
			return 0, false
		}
		return one * t.Count, true
	}
	return 0, true
}

// spell writes the type as C would, for the user.
func (t *isfType) spell(depth int) string {
	if depth > 8 {
		return "..."
	}
	switch {
	case t.Kind == "pointer" && t.Subtype != nil:
		return t.Subtype.spell(depth+1) + "*"
	case t.Kind == "array" && t.Subtype != nil:
		return fmt.Sprintf("%s[%d]", t.Subtype.spell(depth+1), t.Count)
	case t.Kind == "function":
		return "function"
	case t.Name == "":
		return t.Kind
	}
	return t.Name
}

// sort orders fields by offset and then by name, so that a profile does not depend on the
// order of a map.
func (s *Struct) sort() {
	order := func(a, b Field) int {
		return cmp.Or(cmp.Compare(a.Offset, b.Offset), cmp.Compare(a.BitOffset, b.BitOffset), cmp.Compare(a.Name, b.Name))
	}
	if !slices.IsSortedFunc(s.Fields, order) {
		slices.SortFunc(s.Fields, order)
	}
}
