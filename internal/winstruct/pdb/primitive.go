package pdb

import "fmt"

// primitives are the types that have no record, by the low byte of their index (cvinfo.h,
// TYPE_ENUM_e). Names are those of C, sizes are in bytes.
var primitives = map[uint32]struct {
	name string
	size uint64
}{
	0x00: {"void", 0}, 0x03: {"void", 0}, 0x07: {"void", 0}, 0x08: {"HRESULT", 4},
	0x04: {"currency", 8}, 0x60: {"bit", 1}, 0x61: {"char", 1}, 0x62: {"bool32", 4},
	0x10: {"char", 1}, 0x20: {"unsigned char", 1}, 0x70: {"char", 1}, 0x71: {"wchar", 2},
	0x7a: {"char16", 2}, 0x7b: {"char32", 4}, 0x7c: {"char8", 1}, 0x68: {"int8", 1}, 0x69: {"uint8", 1},
	0x11: {"short", 2}, 0x21: {"unsigned short", 2}, 0x72: {"short", 2}, 0x73: {"unsigned short", 2},
	0x12: {"long", 4}, 0x22: {"unsigned long", 4}, 0x74: {"int", 4}, 0x75: {"unsigned int", 4},
	0x13: {"long long", 8}, 0x23: {"unsigned long long", 8}, 0x76: {"long long", 8}, 0x77: {"unsigned long long", 8},
	0x14: {"int128", 16}, 0x24: {"uint128", 16}, 0x78: {"int128", 16}, 0x79: {"uint128", 16},
	0x40: {"float", 4}, 0x41: {"double", 8}, 0x42: {"float80", 10}, 0x43: {"float128", 16}, 0x44: {"float48", 6}, 0x45: {"float", 4}, 0x46: {"float16", 2},
	0x50: {"complex32", 8}, 0x51: {"complex64", 16}, 0x52: {"complex80", 20}, 0x53: {"complex128", 32},
	0x30: {"bool", 1}, 0x31: {"bool16", 2}, 0x32: {"bool32", 4}, 0x33: {"bool64", 8},
}

// primitive is the type with an index below firstIndex: bits 8 to 11 say whether it is
// a pointer, and of what width.
func primitive(index uint32) (Type, error) {
	ty := Type{Index: index, Kind: Primitive}
	p, ok := primitives[index&0xff]
	if !ok {
		// An undocumented kind of this range: its size is not known.
		ty.Name = fmt.Sprintf("primitive %#x", index)
		return ty, nil
	}
	ty.Name, ty.Size = p.name, p.size
	switch index >> 8 & 0xf {
	case 0:
		return ty, nil
	case 1, 2, 3, 4, 5, 6, 7:
		ty.Kind, ty.Elem = Pointer, index&0xff
		ty.Size = [8]uint64{0, 2, 4, 4, 4, 6, 8, 16}[index>>8&0xf]
		return ty, nil
	}
	return Type{}, corrupt("primitive type %#x", index)
}
