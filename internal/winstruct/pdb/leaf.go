package pdb

import "math"

// Kinds of type records, called leaves (cvinfo.h, LEAF_ENUM_e). Leaves with 16 in their
// name have 16-bit type indices. Leaves with ST or 16 in their name have names with a
// length in front.
const (
	leafModifier16  = 0x0001
	leafPointer16   = 0x0002
	leafArray16     = 0x0003
	leafClass16     = 0x0004
	leafStructure16 = 0x0005
	leafUnion16     = 0x0006
	leafEnum16      = 0x0007
	leafFieldList16 = 0x0204
	leafBitField16  = 0x0206

	leafBClass16     = 0x0400
	leafVBClass16    = 0x0401
	leafIVBClass16   = 0x0402
	leafEnumerateST  = 0x0403
	leafFriendFcn16  = 0x0404
	leafIndex16      = 0x0405
	leafMember16     = 0x0406
	leafSTMember16   = 0x0407
	leafMethod16     = 0x0408
	leafNestType16   = 0x0409
	leafVFuncTab16   = 0x040a
	leafFriendCls16  = 0x040b
	leafOneMethod16  = 0x040c
	leafVFuncOff16   = 0x040d
	leafModifier     = 0x1001
	leafPointer      = 0x1002
	leafArrayST      = 0x1003
	leafClassST      = 0x1004
	leafStructureST  = 0x1005
	leafUnionST      = 0x1006
	leafEnumST       = 0x1007
	leafFieldList    = 0x1203
	leafBitField     = 0x1205
	leafBClass       = 0x1400
	leafVBClass      = 0x1401
	leafIVBClass     = 0x1402
	leafFriendFcnST  = 0x1403
	leafIndex        = 0x1404
	leafMemberST     = 0x1405
	leafSTMemberST   = 0x1406
	leafMethodST     = 0x1407
	leafNestTypeST   = 0x1408
	leafVFuncTab     = 0x1409
	leafFriendCls    = 0x140a
	leafOneMethodST  = 0x140b
	leafVFuncOff     = 0x140c
	leafNestTypeExST = 0x140d
	leafMemberModST  = 0x140e
	leafEnumerate    = 0x1502
	leafArray        = 0x1503
	leafClass        = 0x1504
	leafStructure    = 0x1505
	leafUnion        = 0x1506
	leafEnum         = 0x1507
	leafFriendFcn    = 0x150c
	leafMember       = 0x150d
	leafSTMember     = 0x150e
	leafMethod       = 0x150f
	leafNestType     = 0x1510
	leafOneMethod    = 0x1511
	leafNestTypeEx   = 0x1512
	leafMemberMod    = 0x1513
	leafStridedArray = 0x1516
	leafInterface    = 0x1519
	leafBInterface   = 0x151a
	leafVector       = 0x151b

	// Not in the published cvinfo.h. Compilers of 2019 and later write them with properties
	// of 32 bits, and with the number of members as a numeric leaf behind the indices.
	leafClass2     = 0x1608
	leafStructure2 = 0x1609
	leafUnion2     = 0x160a
	leafInterface2 = 0x160b
)

// leafNumeric is the first of the leaves that give the form of a number.
const leafNumeric = 0x8000

// numericSize has the sizes in bytes of the numbers behind each numeric leaf. Only integers
// have a value here.
var numericSize = map[uint16]int{
	0x8005: 4, 0x8006: 8, 0x8007: 10, 0x8008: 16, 0x800b: 6, // reals of 32, 64, 80, 128, 48 bits
	0x800c: 8, 0x800d: 16, 0x800e: 20, 0x800f: 32, // complex
	0x8019: 16, 0x801a: 8, 0x801c: 2, // decimal, date, real of 16 bits
}

// number is the value of a numeric leaf. ok is false for a number that is no integer or has
// more than 64 bits.
type number struct {
	value  uint64 // sign-extended where negative
	signed bool   // value is negative as an int64
	ok     bool
}

// numeric reads a numeric leaf. A value below 0x8000 is the number itself; any other is a
// leaf that gives the form of the number that follows.
func (c *cursor) numeric() number {
	leaf := c.u16()
	if leaf < leafNumeric {
		return number{uint64(leaf), false, !c.bad}
	}
	signed := func(v int64) number { return number{uint64(v), v < 0, !c.bad} }
	switch leaf {
	case 0x8000: // LF_CHAR
		return signed(int64(int8(c.u8())))
	case 0x8001: // LF_SHORT
		return signed(int64(int16(c.u16())))
	case 0x8002: // LF_USHORT
		return number{uint64(c.u16()), false, !c.bad}
	case 0x8003: // LF_LONG
		return signed(int64(int32(c.u32())))
	case 0x8004: // LF_ULONG
		return number{uint64(c.u32()), false, !c.bad}
	case 0x8009: // LF_QUADWORD
		return signed(int64(c.u64()))
	case 0x800a: // LF_UQUADWORD
		return number{c.u64(), false, !c.bad}
	case 0x8017, 0x8018: // LF_OCTWORD, LF_UOCTWORD
		low, high := c.u64(), c.u64()
		neg := leaf == 0x8017 && high == math.MaxUint64 && low>>63 != 0
		return number{low, neg, !c.bad && (high == 0 && (leaf == 0x8018 || low>>63 == 0) || neg)}
	case 0x8010: // LF_VARSTRING
		c.take(int(c.u16()))
		return number{}
	case 0x801b: // LF_UTF8STRING
		c.text(false)
		return number{}
	}
	n, known := numericSize[leaf]
	if !known {
		c.bad, c.p = true, nil
		return number{}
	}
	c.take(n)
	return number{}
}

// size reads a numeric leaf that is a number of bytes. A value that can be neither a size
// nor an offset makes the record bad.
func (c *cursor) size() uint64 {
	n := c.numeric()
	if !n.ok || n.signed || n.value > math.MaxUint32 {
		c.bad, c.p = true, nil
		return 0
	}
	return n.value
}
