package pdb

import (
	"encoding/binary"
	"fmt"
)

// Kind is the kind of a type.
type Kind uint8

// Kinds of types. Procedures and everything else without a size are Other.
const (
	Other Kind = iota
	Primitive
	Structure // also classes and interfaces
	Union
	Enum
	Pointer
	Array
	Modifier // const, volatile
	BitField
	FieldList
)

// Type is one record of the type stream, or a primitive type.
type Type struct {
	Index   uint32
	Kind    Kind
	Name    string // of structures, unions, enumerations and primitives
	Unique  string // decorated name, "" where there is none
	Size    uint64 // bytes; of structures, unions, arrays, pointers and primitives
	Forward bool   // declared only: Resolve finds the definition

	Fields    uint32 // type index of the members
	Elem      uint32 // what is pointed to, held, modified, or underlies
	BitOffset uint8
	BitCount  uint8
}

// Versions of the type stream that are read (tpi.h). Both have 32-bit type indices. Records
// of the older one have names with a length in front, and may have 16-bit forms.
const (
	tpiV70 = 19990903
	tpiV80 = 20040203
)

const (
	firstIndex    = 0x1000 // type indices below are primitive types
	maxTypeStream = 512 << 20
	maxTypes      = 1 << 22
	maxDepth      = 64 // of types within types
)

// Types is the type stream of a PDB. It is safe for concurrent use.
type Types struct {
	data    []byte
	first   uint32
	offsets []uint32 // of each record in data
	defined map[string]uint32
}

// Types reads the type stream. The result takes as much memory as the stream is large.
func (f *File) Types() (*Types, error) {
	t, err := f.types()
	if err != nil {
		return nil, fmt.Errorf("type stream: %w", err)
	}
	return t, nil
}

func (f *File) types() (*Types, error) {
	s, err := f.msf.stream(streamTPI)
	if err != nil {
		return nil, err
	}
	if s.size > maxTypeStream || int64(s.size) > f.size {
		return nil, corrupt("%d bytes in a file of %d", s.size, f.size)
	}
	h, err := s.bytes(0, min(s.size, 20))
	if err != nil {
		return nil, err
	}
	if len(h) < 20 {
		return nil, corrupt("%d bytes", len(h))
	}
	le := binary.LittleEndian
	if v := le.Uint32(h); v != tpiV70 && v != tpiV80 {
		return nil, fmt.Errorf("%w: version %d; read are %d and %d", ErrUnsupported, v, tpiV70, tpiV80)
	}
	header, first, end, size := le.Uint32(h[4:]), le.Uint32(h[8:]), le.Uint32(h[12:]), le.Uint32(h[16:])
	if header < 20 || first < firstIndex || end < first || end-first > maxTypes {
		return nil, corrupt("a header of %d bytes, types %#x to %#x", header, first, end)
	}
	data, err := s.bytes(header, size)
	if err != nil {
		return nil, err
	}
	return newTypes(data, first, end-first)
}

// newTypes finds the records in the stream's data. Each has its length in front.
func newTypes(data []byte, first, count uint32) (*Types, error) {
	if uint64(count)*4 > uint64(len(data)) {
		return nil, corrupt("%d types in %d bytes", count, len(data))
	}
	t := &Types{data: data, first: first, offsets: make([]uint32, 0, count), defined: make(map[string]uint32)}
	for at := 0; at < len(data); {
		if len(data)-at < 4 {
			return nil, corrupt("%d bytes behind the last record", len(data)-at)
		}
		n := int(binary.LittleEndian.Uint16(data[at:]))
		if n < 2 || n > len(data)-at-2 {
			return nil, corrupt("type %#x is a record of %d bytes with %d left", first+uint32(len(t.offsets)), n, len(data)-at-2)
		}
		if len(t.offsets) == int(count) {
			return nil, corrupt("more than the %d types that the header counts", count)
		}
		t.offsets = append(t.offsets, uint32(at))
		at += 2 + n
	}
	if len(t.offsets) != int(count) {
		return nil, corrupt("%d types where the header counts %d", len(t.offsets), count)
	}
	return t, t.findDefinitions()
}

// findDefinitions records the first definition of each name. References to types that are
// only declared are resolved with it.
func (t *Types) findDefinitions() error {
	for i := range t.offsets {
		index := t.first + uint32(i)
		switch t.leaf(index) {
		case leafClass16, leafStructure16, leafUnion16, leafEnum16, leafClassST, leafStructureST, leafUnionST, leafEnumST,
			leafClass, leafStructure, leafUnion, leafEnum, leafInterface, leafClass2, leafStructure2, leafUnion2, leafInterface2:
		default:
			continue
		}
		ty, err := t.At(index)
		if err != nil {
			return err
		}
		if ty.Forward {
			continue
		}
		if _, again := t.defined[ty.key()]; !again {
			t.defined[ty.key()] = index
		}
	}
	return nil
}

// key is what a declaration and its definition share: the decorated name, or the kind and
// the plain name.
func (t *Type) key() string {
	if t.Unique != "" {
		return t.Unique
	}
	return string(rune('0'+t.Kind)) + t.Name
}

// Count returns the number of records. Their indices start with First.
func (t *Types) Count() int { return len(t.offsets) }

// First returns the index of the first record.
func (t *Types) First() uint32 { return t.first }

// record returns the content of a record, starting with its leaf.
func (t *Types) record(index uint32) ([]byte, error) {
	if index < t.first || index-t.first >= uint32(len(t.offsets)) {
		return nil, corrupt("type %#x is beyond the last, %#x", index, t.first+uint32(len(t.offsets)))
	}
	at := t.offsets[index-t.first]
	n := uint32(binary.LittleEndian.Uint16(t.data[at:]))
	return t.data[at+2 : at+2+n], nil
}

func (t *Types) leaf(index uint32) uint16 {
	rec, err := t.record(index)
	if err != nil {
		return 0
	}
	return binary.LittleEndian.Uint16(rec)
}

// At decodes the type with an index.
func (t *Types) At(index uint32) (Type, error) {
	if index < firstIndex {
		return primitive(index)
	}
	rec, err := t.record(index)
	if err != nil {
		return Type{}, err
	}
	c := cursor{p: rec}
	ty := Type{Index: index}
	c.decode(&ty)
	if c.bad {
		return Type{}, corrupt("type %#x is a record of kind %#x with %d bytes: it does not fit", index, binary.LittleEndian.Uint16(rec), len(rec))
	}
	return ty, nil
}

// Properties of structures and enumerations (CV_prop_t).
const (
	propForward = 1 << 7
	propUnique  = 1 << 9
)

// decode reads one record.
func (c *cursor) decode(ty *Type) {
	switch leaf := c.u16(); leaf {
	case leafClass16, leafStructure16:
		c.u16() // members
		fields, prop := uint32(c.u16()), c.u16()
		c.take(4) // derived, vtable shape
		c.udt(ty, Structure, fields, prop, true)
	case leafUnion16:
		c.u16()
		fields, prop := uint32(c.u16()), c.u16()
		c.udt(ty, Union, fields, prop, true)
	case leafClassST, leafStructureST, leafClass, leafStructure, leafInterface:
		c.u16()
		prop, fields := c.u16(), c.u32()
		c.take(8)
		c.udt(ty, Structure, fields, prop, leaf < leafEnumerate)
	case leafUnionST, leafUnion:
		c.u16()
		prop, fields := c.u16(), c.u32()
		c.udt(ty, Union, fields, prop, leaf < leafEnumerate)
	case leafClass2, leafStructure2, leafInterface2, leafUnion2:
		prop, fields, kind := c.u32(), c.u32(), Union
		if leaf != leafUnion2 {
			c.take(8)
			kind = Structure
		}
		c.numeric() // members
		c.udt(ty, kind, fields, uint16(prop), false)
	case leafEnum16:
		c.u16()
		ty.Elem, ty.Fields = uint32(c.u16()), uint32(c.u16())
		c.enum(ty, c.u16(), true)
	case leafEnumST, leafEnum:
		c.u16()
		prop := c.u16()
		ty.Elem, ty.Fields = c.u32(), c.u32()
		c.enum(ty, prop, leaf == leafEnumST)
	case leafPointer16:
		attr := uint32(c.u16())
		ty.Kind, ty.Elem = Pointer, uint32(c.u16())
		ty.Size = pointerSize(attr & 0x1f)
	case leafPointer:
		ty.Kind, ty.Elem = Pointer, c.u32()
		attr := c.u32()
		if ty.Size = uint64(attr >> 13 & 0x3f); ty.Size == 0 {
			ty.Size = pointerSize(attr & 0x1f)
		}
	case leafArray16:
		ty.Kind, ty.Elem = Array, uint32(c.u16())
		c.u16()
		ty.Size = c.size()
		c.text(true)
	case leafArrayST, leafArray:
		ty.Kind, ty.Elem = Array, c.u32()
		c.u32()
		ty.Size = c.size()
		c.text(leaf == leafArrayST)
	case leafStridedArray, leafVector:
		ty.Kind, ty.Elem = Array, c.u32()
		c.u32() // index type or number of elements
		if leaf == leafStridedArray {
			c.u32()
		}
		ty.Size = c.size()
	case leafModifier16:
		ty.Kind = Modifier
		c.u16()
		ty.Elem = uint32(c.u16())
	case leafModifier:
		ty.Kind, ty.Elem = Modifier, c.u32()
	case leafBitField16:
		ty.Kind, ty.BitCount, ty.BitOffset = BitField, c.u8(), c.u8()
		ty.Elem = uint32(c.u16())
	case leafBitField:
		ty.Kind, ty.Elem = BitField, c.u32()
		ty.BitCount, ty.BitOffset = c.u8(), c.u8()
	case leafFieldList, leafFieldList16:
		ty.Kind = FieldList
	}
}

// udt reads the rest of a structure or union: its size and names.
func (c *cursor) udt(ty *Type, kind Kind, fields uint32, prop uint16, prefixed bool) {
	ty.Kind, ty.Fields, ty.Forward = kind, fields, prop&propForward != 0
	ty.Size = c.size()
	c.names(ty, prop, prefixed)
}

func (c *cursor) enum(ty *Type, prop uint16, prefixed bool) {
	ty.Kind, ty.Forward = Enum, prop&propForward != 0
	c.names(ty, prop, prefixed)
}

func (c *cursor) names(ty *Type, prop uint16, prefixed bool) {
	ty.Name = c.text(prefixed)
	if prop&propUnique != 0 && len(c.p) > 0 {
		ty.Unique = c.text(prefixed)
	}
}

// pointerSize is the size in bytes of a pointer of a kind (CV_ptrtype_e).
func pointerSize(kind uint32) uint64 {
	switch kind {
	case 0x0: // 16 bits
		return 2
	case 0xb: // 16:32
		return 6
	case 0xc: // 64 bits
		return 8
	}
	return 4
}

// Resolve follows modifiers, and declarations to their definitions. A declaration without a
// definition is returned as it is.
func (t *Types) Resolve(index uint32) (Type, error) {
	for range maxDepth {
		ty, err := t.At(index)
		if err != nil {
			return Type{}, err
		}
		switch {
		case ty.Kind == Modifier:
			index = ty.Elem
		case ty.Forward:
			def, ok := t.defined[ty.key()]
			if !ok {
				return ty, nil
			}
			return t.At(def)
		default:
			return ty, nil
		}
	}
	return Type{}, corrupt("type %#x is a modifier without an end", index)
}

// Size returns the size of a type in bytes, or 0 if it has none.
func (t *Types) Size(index uint32) (uint64, error) {
	for range maxDepth {
		ty, err := t.Resolve(index)
		if err != nil {
			return 0, err
		}
		if ty.Kind != Enum && ty.Kind != BitField {
			return ty.Size, nil
		}
		index = ty.Elem
	}
	return 0, corrupt("type %#x is made of itself", index)
}
