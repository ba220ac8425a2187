package winstruct

import "fmt"

// Profile is the layout of one kernel build. It is immutable once loaded and
// safe for concurrent use.
type Profile struct {
	Identity
	Arch    string // "x64" or "x86"
	Version string // file version where known: "10.0.19041.1237"
	Origin  string // where the facts come from, for the user

	structs map[string]*Struct
	enums   map[string]map[string]int64
	symbols map[string]uint64
}

// Struct is one structure or union.
type Struct struct {
	Name   string
	Size   uint32 // bytes
	Fields []Field
}

// Field is one member of a structure, at its offset from the start of it.
type Field struct {
	Name      string
	Offset    uint32 // bytes
	Type      string // C-like: "_LIST_ENTRY", "unsigned long", "pointer"
	Target    string // for pointers and arrays: what they hold
	Count     uint32 // elements, for arrays
	Size      uint32 // bytes, all elements
	BitOffset uint8  // for bit fields: first bit
	BitCount  uint8  // for bit fields: width; 0 for others
}

// Struct returns the named structure.
func (p *Profile) Struct(name string) (*Struct, bool) {
	s, ok := p.structs[name]
	return s, ok
}

// Symbol returns the RVA of a global symbol of the kernel image.
func (p *Profile) Symbol(name string) (rva uint64, ok bool) {
	rva, ok = p.symbols[name]
	return rva, ok
}

// Enum returns the named enumeration, by constant name.
func (p *Profile) Enum(name string) (map[string]int64, bool) {
	e, ok := p.enums[name]
	return e, ok
}

// Field resolves a dotted path of members, "Pcb.DirectoryTableBase" in
// "_EPROCESS", and returns the last member with its offset counted from the
// start of structName.
func (p *Profile) Field(structName, path string) (Field, error) {
	return Field{}, fmt.Errorf("not built yet")
}

// Compile fills the uint32, uint8 and Field members of the structure that dst
// points to from their `win:"_STRUCT.Member.Path"` tags (offset), or
// `win:"sizeof(_STRUCT)"`, `win:"sym(PsActiveProcessHead)"` for uint64 RVAs.
// Alternatives are separated by '|'; a tag that ends in ",optional" leaves
// Missing where no alternative exists. Every other missing name is reported, all
// of them in one error.
func Compile(p *Profile, dst any) error { return fmt.Errorf("not built yet") }

// Missing is the offset that Compile leaves for an optional member that the
// build lacks.
const Missing = ^uint32(0)
