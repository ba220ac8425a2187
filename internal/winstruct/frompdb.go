package winstruct

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"vmav.dev/vmav/internal/winstruct/cab"
	"vmav.dev/vmav/internal/winstruct/pdb"
)

// maxMembers bounds the total number of fields of all structures of one PDB, because many
// structures can share one list of members.
const maxMembers = 1 << 21

// maxPDB bounds a PDB that is imported, in bytes.
const maxPDB = 1 << 30

// ImportPDBFile makes a profile from a PDB file, uncompressed or in a cabinet. A PDB does
// not contain its own name, so that of the file is used.
func ImportPDBFile(path string) (p *Profile, err error) {
	err = ReadPDB(path, maxPDB, func(r io.ReaderAt, size int64, name string) error {
		p, err = ImportPDB(r, size, name)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make a profile of %s: %w", path, err)
	}
	return p, nil
}

// ReadPDB opens a PDB file, uncompressed or in a cabinet, and calls f with its content, its
// size in bytes and its name. It fails for a file that has more than most bytes in either
// form.
func ReadPDB(path string, most int64, f func(r io.ReaderAt, size int64, name string) error) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	st, err := file.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() || st.Size() > most {
		return fmt.Errorf("not a file of at most %d bytes", most)
	}
	head := make([]byte, len(cab.Magic))
	if _, err := file.ReadAt(head, 0); err != nil || string(head) != cab.Magic {
		return f(file, st.Size(), filepath.Base(path))
	}
	tmp, err := os.CreateTemp("", "vmav-pdb-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	name, size, err := cab.Extract(tmp, file, most)
	if err != nil {
		return err
	}
	return f(tmp, size, filepath.Base(strings.ReplaceAll(name, `\`, "/")))
}

// ImportPDB makes a profile from a PDB of size bytes with a name. The input is not trusted:
// everything is bounded, and a PDB that contradicts itself is refused.
func ImportPDB(r io.ReaderAt, size int64, name string) (*Profile, error) {
	f, err := pdb.Open(r, size)
	if err != nil {
		return nil, err
	}
	return fromPDB(f, name)
}

// PDBIdentity reads only the identity of a PDB with a name, and neither its types nor its
// symbols.
func PDBIdentity(r io.ReaderAt, size int64, name string) (Identity, error) {
	f, err := pdb.Open(r, size)
	if err != nil {
		return Identity{}, err
	}
	return identityOf(f, name), nil
}

func identityOf(f *pdb.File, name string) Identity {
	return Identity{PDB: strings.ToLower(name), GUID: f.Info().GUIDText(), Age: f.Info().Age}
}

func fromPDB(f *pdb.File, name string) (*Profile, error) {
	p := &Profile{Identity: identityOf(f, name),
		Sources: []Source{{Of: "all", From: "PDB " + name, Verified: VerifiedIdentity}},
		structs: make(map[string]*Struct), enums: make(map[string]map[string]int64), symbols: make(map[string]uint64)}
	types, err := f.Types()
	if err != nil {
		return nil, err
	}
	machine := f.Machine()
	if machine == 0 { // linkers of Windows XP's time left it out
		machine = machineOf(types)
	}
	switch machine {
	case pdb.MachineX64:
		p.Arch = ArchX64
	case pdb.MachineX86:
		p.Arch = ArchX86
	case pdb.MachineARM64:
		p.Arch = ArchARM64
	default:
		return nil, fmt.Errorf("it is of a program for machine %#x, neither x86, x64 nor ARM64", f.Machine())
	}
	err = f.Symbols(func(s pdb.Symbol) bool {
		name := s.Name
		if p.Arch == ArchX86 && s.Public {
			name = undecorate(name)
		}
		if _, again := p.symbols[name]; !again && s.RVA <= maxExtent {
			p.symbols[name] = uint64(s.RVA)
		}
		return len(p.symbols) <= maxSymbols
	})
	if err != nil {
		return nil, err
	}
	b := pdbTypes{types: types, profile: p, names: make(map[uint32]string)}
	if err := b.all(); err != nil {
		return nil, err
	}
	switch {
	case len(p.symbols) > maxSymbols:
		return nil, errors.New("more symbols than any kernel has")
	case len(p.structs) == 0:
		return nil, errors.New("it holds no types: a PDB stripped of them is of no use")
	case len(p.symbols) == 0:
		return nil, errors.New("it holds no public symbols")
	}
	if err := p.check(); err != nil {
		return nil, err
	}
	return p, nil
}

// machineOf returns the machine that a program's types are for, by the width of most of its
// pointers, or 0 if it has none. Programs for ARM64 are younger than PDBs that do not name
// their machine.
func machineOf(types *pdb.Types) uint16 {
	narrow, wide := 0, 0
	for i := range types.Count() {
		ty, err := types.At(types.First() + uint32(i))
		switch {
		case err != nil || ty.Kind != pdb.Pointer:
		case ty.Size == 4:
			narrow++
		case ty.Size == 8:
			wide++
		}
	}
	switch {
	case narrow > wide:
		return pdb.MachineX86
	case wide > narrow:
		return pdb.MachineX64
	}
	return 0
}

// undecorate removes the decoration that the x86 compiler puts around the name of a C
// function or variable: "_Name", "_Name@8", "@Name@8". C++ names stay as they are.
func undecorate(name string) string {
	bare, ok := strings.CutPrefix(name, "_")
	if !ok {
		bare, ok = strings.CutPrefix(name, "@")
	}
	if !ok || bare == "" {
		return name
	}
	if at := strings.LastIndexByte(bare, '@'); at > 0 && at+1 < len(bare) && strings.Trim(bare[at+1:], "0123456789") == "" {
		bare = bare[:at]
	}
	return bare
}

// pdbTypes converts the types of a PDB into structures of a profile.
type pdbTypes struct {
	types   *pdb.Types
	profile *Profile
	names   map[uint32]string // of definitions, by index
	members int
}

// all takes every structure, union and enumeration that is defined.
func (b *pdbTypes) all() error {
	var defs []pdb.Type
	taken := make(map[string]pdb.Type)
	for i := range b.types.Count() {
		ty, err := b.types.At(b.types.First() + uint32(i))
		if err != nil {
			return err
		}
		if ty.Forward || ty.Kind != pdb.Structure && ty.Kind != pdb.Union && ty.Kind != pdb.Enum {
			continue
		}
		name := ty.Name
		if unnamedType(name) {
			name = fmt.Sprintf("__unnamed_%x", ty.Index)
		}
		if first, again := taken[name]; again {
			// The same type compiled twice, or two types of one name: the first one counts.
			if first.Kind == ty.Kind && first.Fields == ty.Fields && first.Size == ty.Size {
				b.names[ty.Index] = name
				continue
			}
			name = fmt.Sprintf("%s__%x", name, ty.Index)
		}
		taken[name], b.names[ty.Index] = ty, name
		if defs = append(defs, ty); len(defs) > maxStructs {
			return errors.New("more types than any kernel has")
		}
	}
	for _, ty := range defs {
		var err error
		if ty.Kind == pdb.Enum {
			err = b.enum(ty)
		} else {
			err = b.structure(ty)
		}
		if err != nil {
			return fmt.Errorf("type %s: %w", ty.Name, err)
		}
	}
	return nil
}

// unnamedType reports whether a type has no name in the source code.
func unnamedType(name string) bool {
	return name == "" || strings.HasPrefix(name, "__unnamed") || strings.Contains(name, "<unnamed-") || strings.Contains(name, "<anonymous-")
}

func (b *pdbTypes) enum(ty pdb.Type) error {
	members, err := b.types.Members(ty.Fields)
	if err != nil {
		return err
	}
	constants := make(map[string]int64, len(members))
	for _, m := range members {
		if m.Type == 0 && !m.Base && !m.VTable {
			constants[m.Name] = m.Value
		}
	}
	b.profile.enums[b.names[ty.Index]] = constants
	return b.count(len(members))
}

func (b *pdbTypes) count(n int) error {
	if b.members += n; b.members > maxMembers {
		return errors.New("more members than any kernel has")
	}
	return nil
}

func (b *pdbTypes) structure(ty pdb.Type) error {
	if ty.Size > maxExtent {
		return fmt.Errorf("a size of %d bytes", ty.Size)
	}
	s := &Struct{Name: b.names[ty.Index], Size: uint32(ty.Size)}
	if err := b.collect(s, ty, 0, 0); err != nil {
		return err
	}
	s.sort()
	b.profile.structs[s.Name] = s
	return nil
}

// collect appends the members of ty to s. Members of a base class, and of a member without
// a name, count as members of s.
func (b *pdbTypes) collect(s *Struct, ty pdb.Type, base uint64, depth int) error {
	if depth > maxDepth {
		return errors.New("nested too deeply")
	}
	members, err := b.types.Members(ty.Fields)
	if err != nil {
		return err
	}
	if err := b.count(len(members) + 1); err != nil {
		return err
	}
	for _, m := range members {
		at := base + m.Offset
		if at > maxExtent {
			return fmt.Errorf("member %s at %#x is out of bounds", m.Name, at)
		}
		if m.VTable {
			m.Name = "__VFN_table" // as debuggers show it
		}
		if m.Base || m.Name == "" {
			inner, err := b.types.Resolve(m.Type)
			if err != nil {
				return err
			}
			if inner.Kind == pdb.Structure || inner.Kind == pdb.Union {
				if err := b.collect(s, inner, at, depth+1); err != nil {
					return err
				}
			}
			continue
		}
		f, err := b.field(m)
		if err != nil {
			return fmt.Errorf("member %s: %w", m.Name, err)
		}
		f.Offset = uint32(at)
		if s.Fields = append(s.Fields, f); len(s.Fields) > maxFields {
			return errors.New("more fields than any structure has")
		}
	}
	return nil
}

// field describes a member's type.
func (b *pdbTypes) field(m pdb.Member) (Field, error) {
	ty, err := b.types.Resolve(m.Type)
	if err != nil {
		return Field{}, err
	}
	size, err := b.types.Size(m.Type)
	if err != nil {
		return Field{}, err
	}
	if size > maxExtent {
		return Field{}, fmt.Errorf("a size of %d bytes", size)
	}
	f := Field{Name: m.Name, Size: uint32(size)}
	switch ty.Kind {
	case pdb.BitField:
		if ty.BitCount == 0 || uint(ty.BitOffset)+uint(ty.BitCount) > 64 {
			return Field{}, fmt.Errorf("a bit field of %d bits at %d", ty.BitCount, ty.BitOffset)
		}
		f.Type, err = b.spell(ty.Elem, 0)
		f.BitOffset, f.BitCount = ty.BitOffset, ty.BitCount
	case pdb.Pointer:
		f.Type = "pointer"
		f.Target, err = b.spell(ty.Elem, 0)
	case pdb.Array:
		f.Type = "array"
		var one uint64
		if one, err = b.types.Size(ty.Elem); err != nil {
			return Field{}, err
		}
		if one > 0 {
			f.Count = uint32(size / one)
		}
		f.Target, err = b.spell(ty.Elem, 0)
	default:
		f.Type, err = b.spell(m.Type, 0)
	}
	return f, err
}

// spell writes a type as C would.
func (b *pdbTypes) spell(index uint32, depth int) (string, error) {
	if depth > 8 {
		return "...", nil
	}
	ty, err := b.types.Resolve(index)
	if err != nil {
		return "", err
	}
	switch ty.Kind {
	case pdb.Pointer:
		to, err := b.spell(ty.Elem, depth+1)
		return to + "*", err
	case pdb.Array:
		of, err := b.spell(ty.Elem, depth+1)
		if err != nil {
			return "", err
		}
		one, err := b.types.Size(ty.Elem)
		if one == 0 {
			return of + "[0]", err
		}
		return fmt.Sprintf("%s[%d]", of, ty.Size/one), err
	case pdb.Structure, pdb.Union, pdb.Enum:
		if name := b.names[ty.Index]; name != "" {
			return name, nil
		}
		if ty.Name == "" {
			return "void", nil
		}
		return ty.Name, nil // declared only
	case pdb.Primitive:
		return ty.Name, nil
	}
	return "function", nil
}
