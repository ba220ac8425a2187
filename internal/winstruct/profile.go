package winstruct

import (
	"fmt"
	"sort"
	"strings"
)

// Profile has the structures, enumerations and symbols of one kernel build. It is immutable
// once loaded and safe for concurrent use.
type Profile struct {
	Identity
	Arch    string   // ArchX64, …
	Version string   // file version where known: "10.0.19041.1237"
	Sources []Source // where the facts come from

	structs map[string]*Struct
	enums   map[string]map[string]int64
	symbols map[string]uint64

	// facts are names of what the profile was asked for when it was made; nil if it has all
	// that its source has. Of what is not in facts it is not known whether the build has it.
	facts map[string]bool
}

// Architectures of a kernel.
const (
	ArchX64   = "x64"
	ArchX86   = "x86"
	ArchARM64 = "arm64"
)

// Verification says how far a source of facts was verified.
type Verification string

// Verifications, from the least to the most.
const (
	VerifiedNone     Verification = "none"     // as somebody wrote it
	VerifiedInferred Verification = "inferred" // of another build, held against the guest's memory
	VerifiedIdentity Verification = "identity" // the source says that it is of this very build
	VerifiedGuest    Verification = "guest"    // and a guest of this build was read with it
)

func (v Verification) check() error {
	switch v {
	case VerifiedNone, VerifiedInferred, VerifiedIdentity, VerifiedGuest:
		return nil
	}
	return fmt.Errorf("verification %q is none of none, inferred, identity and guest", string(v))
}

// Source says where facts of a profile come from.
type Source struct {
	Of       string       `json:"of"`   // "all", "types", "symbols", or the name of one structure or symbol
	From     string       `json:"from"` // for a person
	Verified Verification `json:"verified"`
}

// SourceOf returns the source of a structure or symbol: the source that names it, or else
// that of its kind, or else that of everything.
func (p *Profile) SourceOf(name string) (Source, bool) {
	kind := "types"
	if _, ok := p.symbols[name]; ok {
		kind = "symbols"
	}
	for _, of := range []string{name, kind, "all"} {
		for _, s := range p.Sources {
			if s.Of == of {
				return s, true
			}
		}
	}
	return Source{}, false
}

// Unverified reports whether none of the sources was verified in any way: the facts are as
// somebody published them, and no guest of that build was read with them.
func Unverified(sources []Source) bool {
	for _, s := range sources {
		if s.Verified != VerifiedNone {
			return false
		}
	}
	return true
}

// Struct is one structure or union. Its fields are in the order of their offsets. Size is
// in bytes.
type Struct struct {
	Name   string
	Size   uint32 // bytes
	Fields []Field
}

// Field is one member of a structure. Offset is counted in bytes from the start of the
// structure, Size is in bytes.
type Field struct {
	Name      string
	Offset    uint32 // bytes
	Type      string // C-like: "_LIST_ENTRY", "unsigned long"; "pointer", "array"
	Target    string // for pointers and arrays: what they hold
	Count     uint32 // elements, for arrays
	Size      uint32 // bytes, all elements; for bit fields of the word they lie in
	BitOffset uint8  // for bit fields: first bit
	BitCount  uint8  // for bit fields: width; 0 for others
}

// Bits returns the value of the bit field from the word that contains it. If the field is
// no bit field it returns the word.
func (f Field) Bits(word uint64) uint64 {
	if f.BitCount == 0 || f.BitCount >= 64 {
		return word
	}
	return word >> f.BitOffset & (1<<f.BitCount - 1)
}

// spell is the type as the user reads it.
func (f Field) spell() string {
	switch {
	case f.BitCount != 0:
		return fmt.Sprintf("%s bits %d..%d", f.Type, f.BitOffset, f.BitOffset+f.BitCount-1)
	case f.Type == "pointer":
		return f.Target + "*"
	case f.Type == "array":
		return fmt.Sprintf("%s[%d]", f.Target, f.Count)
	}
	return f.Type
}

// String is the field as `vmav profile show` prints it: offset, name, type.
func (f Field) String() string {
	return fmt.Sprintf("0x%03x  %-32s  %s", f.Offset, f.Name, f.spell())
}

// Struct returns the named structure. The caller must not change it.
func (p *Profile) Struct(name string) (*Struct, bool) {
	s, ok := p.structs[name]
	return s, ok
}

// Structs returns the names of all structures, sorted.
func (p *Profile) Structs() []string { return sortedKeys(p.structs) }

// Symbols returns the names of all symbols, sorted.
func (p *Profile) Symbols() []string { return sortedKeys(p.symbols) }

func sortedKeys[V any](m map[string]V) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

// Symbol returns the RVA of a global symbol of the kernel image.
func (p *Profile) Symbol(name string) (rva uint64, ok bool) {
	rva, ok = p.symbols[name]
	return rva, ok
}

// Enum returns the named enumeration, by constant name. The caller must not
// change it.
func (p *Profile) Enum(name string) (map[string]int64, bool) {
	e, ok := p.enums[name]
	return e, ok
}

// BuildNumber returns the third number of the profile's version, or 0 if it has none.
func (p *Profile) BuildNumber() int { return parseVersion(p.Version)[2] }

// PointerSize returns the size of a pointer in bytes.
func (p *Profile) PointerSize() uint32 {
	if p.Arch == ArchX86 {
		return 4
	}
	return 8
}

// Field resolves a dotted path of members, such as "Pcb.DirectoryTableBase" in "_EPROCESS".
// It returns the last member, with its offset counted from the start of structName. All
// members before the last must be embedded structures: a path does not follow pointers.
func (p *Profile) Field(structName, path string) (Field, error) {
	s, ok := p.structs[structName]
	if !ok {
		return Field{}, fmt.Errorf("no structure %s", structName)
	}
	var base uint32
	for {
		name, rest, more := strings.Cut(path, ".")
		f, ok := s.field(name)
		if !ok {
			return Field{}, fmt.Errorf("no field %s in %s", name, s.Name)
		}
		if !more {
			f.Offset += base
			return f, nil
		}
		base += f.Offset
		next, ok := p.structs[f.Type]
		if !ok {
			return Field{}, fmt.Errorf("field %s of %s is %s, not a structure", name, s.Name, f.spell())
		}
		s, path = next, rest
	}
}

func (s *Struct) field(name string) (Field, bool) {
	for i := range s.Fields {
		if s.Fields[i].Name == name {
			return s.Fields[i], true
		}
	}
	return Field{}, false
}

// Trim returns a profile that has only the named structures, enumerations and symbols of p,
// and the nameless structures embedded in those.
func (p *Profile) Trim(structs, enums, symbols []string) *Profile {
	t := &Profile{Identity: p.Identity, Arch: p.Arch, Version: p.Version, Sources: p.Sources, facts: p.facts,
		structs: make(map[string]*Struct), enums: make(map[string]map[string]int64), symbols: make(map[string]uint64)}
	for len(structs) > 0 {
		name := structs[0]
		structs = structs[1:]
		s, ok := p.structs[name]
		if !ok || t.structs[name] != nil {
			continue
		}
		t.structs[name] = s
		for _, f := range s.Fields {
			if nameless(f.Type) {
				structs = append(structs, f.Type)
			}
		}
	}
	for _, name := range enums {
		if e, ok := p.enums[name]; ok {
			t.enums[name] = e
		}
	}
	for _, name := range symbols {
		if rva, ok := p.symbols[name]; ok {
			t.symbols[name] = rva
		}
	}
	return t
}

// ForImage returns the profile of an image with p's structures and the given symbols, which are
// RVAs in the image.
func (p *Profile) ForImage(id Identity, symbols map[string]uint64) *Profile {
	n := *p
	n.Identity, n.symbols = id, symbols
	return &n
}

// nameless reports whether a structure has no name in the source code. Symbol files number
// such structures.
func nameless(name string) bool {
	return strings.Contains(name, "anonymous") || strings.Contains(name, "unnamed")
}
