package pdb

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"vmav.dev/vmav/internal/winstruct/pdb/pdbtest"
)

type (
	num = pdbtest.Num
	st  = pdbtest.Prefixed
)

var (
	rec   = pdbtest.Rec
	list  = pdbtest.List
	entry = pdbtest.Entry
)

func openBytes(t testing.TB, data []byte) *File {
	t.Helper()
	f, err := Open(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func typesOf(t testing.TB, p *pdbtest.PDB) *Types {
	t.Helper()
	types, err := openBytes(t, p.Bytes()).Types()
	if err != nil {
		t.Fatal(err)
	}
	return types
}

const public = uint16(3) // attributes of a public member

// describe writes a structure as text: size, and each member with what it is.
func describe(t testing.TB, types *Types, index uint32) string {
	t.Helper()
	ty, err := types.Resolve(index)
	if err != nil {
		t.Fatal(err)
	}
	members, err := types.Members(ty.Fields)
	if err != nil {
		t.Fatal(err)
	}
	out := []string{fmt.Sprintf("%s %d", ty.Name, ty.Size)}
	for _, m := range members {
		mt, err := types.At(m.Type)
		if err != nil {
			t.Fatal(err)
		}
		size, err := types.Size(m.Type)
		if err != nil {
			t.Fatal(err)
		}
		what := fmt.Sprintf("%d %s/%d", m.Offset, m.Name, size)
		switch {
		case m.Base:
			what += " base"
		case m.VTable:
			what += " vtable"
		case mt.Kind == BitField:
			what += fmt.Sprintf(" bits %d+%d", mt.BitOffset, mt.BitCount)
		}
		out = append(out, what)
	}
	return strings.Join(out, ", ")
}

// xpTypes is a type stream as the tools of Windows XP's time wrote it: version
// 19990903, names with their length in front.
func xpTypes(p *pdbtest.PDB) (process, flags uint32) {
	p.TypeVersion = tpiV70
	declared := p.Add(rec(leafStructureST, uint16(0), uint16(propForward), uint32(0), uint32(0), uint32(0), num(0), st("_EPROCESS")))
	pointer := p.Add(rec(leafPointer, declared, uint32(0x800a)))
	links := p.Add(list(leafFieldList,
		entry(leafMemberST, public, pointer, num(0), st("Flink")),
		entry(leafMemberST, public, pointer, num(4), st("Blink"))))
	listEntry := p.Add(rec(leafStructureST, uint16(2), uint16(0), links, uint32(0), uint32(0), num(8), st("_LIST_ENTRY")))
	name := p.Add(rec(leafArrayST, uint32(0x20), uint32(0x22), num(16), st("")))
	bit0 := p.Add(rec(leafBitField, uint32(0x22), uint8(1), uint8(0)))
	bits := p.Add(rec(leafBitField, uint32(0x22), uint8(30), uint8(1)))
	long := p.Add(rec(leafModifier, uint32(0x75), uint16(1)))
	unionFields := p.Add(list(leafFieldList,
		entry(leafMemberST, public, long, num(0), st("Flags")),
		entry(leafMemberST, public, bit0, num(0), st("CreateReported")),
		entry(leafMemberST, public, bits, num(0), st("Rest"))))
	flags = p.Add(rec(leafUnionST, uint16(3), uint16(0), unionFields, num(4), st("__unnamed")))
	rest := p.Add(list(leafFieldList,
		entry(leafMemberST, public, name, num(0x174), st("ImageFileName")),
		entry(leafMemberST, public, flags, num(0x248), st("u")),
		entry(leafMemberST, public, uint32(0x0403), num(0x8000), st("Far"))))
	fields := p.Add(list(leafFieldList,
		entry(leafMemberST, public, listEntry, num(0x88), st("ActiveProcessLinks")),
		entry(leafMemberST, public, uint32(0x0422), num(0x84), st("UniqueProcessId")),
		entry(leafSTMemberST, public, uint32(0x74), st("Static")),
		entry(leafNestTypeST, uint16(0), listEntry, st("Nested")),
		entry(leafMethodST, uint16(2), uint32(0x1000), st("Overloaded")),
		entry(leafOneMethodST, uint16(3|4<<2), uint32(0x1000), uint32(8), st("Virtual")),
		entry(leafOneMethodST, public, uint32(0x1000), st("Plain")),
		entry(leafIndex, uint16(0), rest)))
	process = p.Add(rec(leafStructureST, uint16(6), uint16(0), fields, uint32(0), uint32(0), num(0x10000), st("_EPROCESS")))
	return process, flags
}

func TestTypesOfTheTimeOfWindowsXP(t *testing.T) {
	p := &pdbtest.PDB{Machine: MachineX86, Age: 2}
	process, flags := xpTypes(p)
	types := typesOf(t, p)
	for _, tt := range []struct {
		index uint32
		want  string
	}{
		{process, "_EPROCESS 65536, 136 ActiveProcessLinks/8, 132 UniqueProcessId/4, 372 ImageFileName/16, 584 u/4, 32768 Far/4"},
		{pdbtest.FirstType, "_EPROCESS 65536, 136 ActiveProcessLinks/8, 132 UniqueProcessId/4, 372 ImageFileName/16, 584 u/4, 32768 Far/4"},
		{flags, "__unnamed 4, 0 Flags/4, 0 CreateReported/4 bits 0+1, 0 Rest/4 bits 1+30"},
	} {
		if got := describe(t, types, tt.index); got != tt.want {
			t.Errorf("%#x is\n%s, want\n%s", tt.index, got, tt.want)
		}
	}
}

// The 16-bit forms: type indices of 16 bits in every record.
func TestTypesOfSixteenBitForm(t *testing.T) {
	p := &pdbtest.PDB{Machine: MachineX86, TypeVersion: tpiV70}
	i16 := func(i uint32) uint16 { return uint16(i) }
	pointer := p.Add(rec(leafPointer16, uint16(0x0a), uint16(0x22))) // near 32-bit, to unsigned long
	array := p.Add(rec(leafArray16, uint16(0x20), uint16(0x22), num(0x9000), st("")))
	bits := p.Add(rec(leafBitField16, uint8(3), uint8(2), uint16(0x22)))
	volatile := p.Add(rec(leafModifier16, uint16(2), uint16(0x21)))
	consts := p.Add(list(leafFieldList16,
		entry(leafEnumerateST, public, num(1), st("One")),
		entry(leafEnumerateST, public, uint16(0x8000), uint8(0xff), st("MinusOne"))))
	enum := p.Add(rec(leafEnum16, uint16(2), uint16(0x74), i16(consts), uint16(0), st("_KIND")))
	baseFields := p.Add(list(leafFieldList16, entry(leafMember16, uint16(0x22), public, num(0), st("Head"))))
	base := p.Add(rec(leafStructure16, uint16(1), i16(baseFields), uint16(0), uint16(0), uint16(0), num(4), st("_BASE")))
	unionFields := p.Add(list(leafFieldList16,
		entry(leafMember16, uint16(0x22), public, num(0), st("Long")),
		entry(leafMember16, i16(bits), public, num(0), st("Bits"))))
	union := p.Add(rec(leafUnion16, uint16(2), i16(unionFields), uint16(0), num(4), st("_U")))
	more := p.Add(list(leafFieldList16, entry(leafMember16, i16(enum), public, num(0x9010), st("Kind"))))
	fields := p.Add(list(leafFieldList16,
		entry(leafBClass16, i16(base), public, num(0)),
		entry(leafVFuncTab16, i16(pointer)),
		entry(leafVFuncOff16, i16(pointer), uint32(8)),
		entry(leafVBClass16, i16(base), i16(pointer), public, num(4), num(1)),
		entry(leafSTMember16, uint16(0x22), public, st("Static")),
		entry(leafMethod16, uint16(1), uint16(0x1000), st("Method")),
		entry(leafOneMethod16, uint16(3|6<<2), uint16(0x1000), uint32(4), st("Intro")),
		entry(leafOneMethod16, public, uint16(0x1000), st("One")),
		entry(leafNestType16, i16(base), st("Nested")),
		entry(leafFriendCls16, i16(base)),
		entry(leafFriendFcn16, i16(base), st("Friend")),
		entry(leafMember16, i16(pointer), public, num(4), st("Pointer")),
		entry(leafMember16, i16(array), public, num(8), st("Array")),
		entry(leafMember16, i16(union), public, num(0x9008), st("Union")),
		entry(leafMember16, i16(volatile), public, num(0x900c), st("Short")),
		entry(leafIndex16, i16(more))))
	class := p.Add(rec(leafClass16, uint16(16), i16(fields), uint16(0), uint16(0), uint16(0), num(0x9014), st("_CLASS")))
	types := typesOf(t, p)
	want := "_CLASS 36884, 0 /4 base, 0 /4 vtable, 8 /4 vtable, 4 Pointer/4, 8 Array/36864, 36872 Union/4, 36876 Short/2, 36880 Kind/4"
	if got := describe(t, types, class); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got, want := describe(t, types, union), "_U 4, 0 Long/4, 0 Bits/4 bits 2+3"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	members, err := types.Members(consts)
	if err != nil || len(members) != 2 || members[0].Value != 1 || members[1].Value != -1 {
		t.Errorf("constants %+v, %v", members, err)
	}
}

func TestTypesOfToday(t *testing.T) {
	p := &pdbtest.PDB{Machine: MachineX64}
	pointer := p.Add(rec(leafPointer, uint32(0x603), uint32(0x1000c)))
	inner := p.Add(list(leafFieldList,
		entry(leafMember, public, uint32(0x23), num(0), "Quad"),
		entry(leafMember, public, pointer, num(8), "Pointer")))
	nameless := p.Add(rec(leafStructure, uint16(2), uint16(propUnique), inner, uint32(0), uint32(0), num(16), "<unnamed-tag>", ".?AU<unnamed-tag>@1@"))
	fields := p.Add(list(leafFieldList,
		entry(leafBInterface, public, nameless, num(0)),
		entry(leafVBClass, public, nameless, pointer, num(8), num(2)),
		entry(leafIVBClass, public, nameless, pointer, uint16(0x8001), uint16(8), num(2)),
		entry(leafFriendCls, uint16(0), nameless),
		entry(leafFriendFcn, uint16(0), nameless, "friend"),
		entry(leafNestTypeEx, public, nameless, "Nested"),
		entry(leafMemberMod, public, nameless, "Modified"),
		entry(leafVFuncOff, uint16(0), pointer, uint32(24)),
		entry(leafMember, public, nameless, num(16), ""),
		entry(leafMember, public, uint32(0x23), num(1<<20), "Far")))
	outer := p.Add(rec(leafInterface, uint16(2), uint16(propUnique), fields, uint32(0), uint32(0), num(1<<20+8), "Outer", ".?AUOuter@@"))
	strided := p.Add(rec(leafStridedArray, uint32(0x22), uint32(0x23), uint32(8), num(64), ""))
	vector := p.Add(rec(leafVector, uint32(0x40), uint32(4), num(16), "v4"))
	young := p.Add(rec(leafStructure2, uint32(propUnique), inner, uint32(0), uint32(0), num(2), num(16), "Young", ".?AUYoung@@"))
	types := typesOf(t, p)
	want := "Outer 1048584, 0 /16 base, 24 /8 vtable, 16 /16, 1048576 Far/8"
	if got := describe(t, types, outer); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got, want := describe(t, types, young), "Young 16, 0 Quad/8, 8 Pointer/8"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	for index, want := range map[uint32]uint64{strided: 64, vector: 16, pointer: 8, 0x603: 8, 0x403: 4, 0x11: 2, 0x23: 8} {
		if got, err := types.Size(index); got != want || err != nil {
			t.Errorf("size of %#x is %d, %v; want %d", index, got, err, want)
		}
	}
}

func TestNumericLeaves(t *testing.T) {
	le := binary.LittleEndian
	leaf := func(kind uint16, rest ...byte) []byte { return append(le.AppendUint16(nil, kind), rest...) }
	for _, tt := range []struct {
		name string
		in   []byte
		want number
	}{
		{"direct", leaf(0x7fff), number{0x7fff, false, true}},
		{"char", leaf(0x8000, 0xfe), number{^uint64(1), true, true}},
		{"short", leaf(0x8001, 0xff, 0xff), number{^uint64(0), true, true}},
		{"ushort", leaf(0x8002, 0xff, 0xff), number{0xffff, false, true}},
		{"long", leaf(0x8003, 0, 0, 0, 0x80), number{0xffffffff80000000, true, true}},
		{"ulong", leaf(0x8004, 0, 0, 0, 0x80), number{0x80000000, false, true}},
		{"quad", leaf(0x8009, 1, 0, 0, 0, 0, 0, 0, 0), number{1, false, true}},
		{"uquad", leaf(0x800a, 0, 0, 0, 0, 0, 0, 0, 0x80), number{1 << 63, false, true}},
		{"octword", leaf(0x8017, bytes.Repeat([]byte{0xff}, 16)...), number{^uint64(0), true, true}},
		{"uoctword beyond 64 bits", leaf(0x8018, bytes.Repeat([]byte{0xff}, 16)...), number{^uint64(0), false, false}},
		{"real32", leaf(0x8005, make([]byte, 4)...), number{}},
		{"real48", leaf(0x800b, make([]byte, 6)...), number{}},
		{"real64", leaf(0x8006, make([]byte, 8)...), number{}},
		{"real80", leaf(0x8007, make([]byte, 10)...), number{}},
		{"real128", leaf(0x8008, make([]byte, 16)...), number{}},
		{"complex32", leaf(0x800c, make([]byte, 8)...), number{}},
		{"complex64", leaf(0x800d, make([]byte, 16)...), number{}},
		{"complex80", leaf(0x800e, make([]byte, 20)...), number{}},
		{"complex128", leaf(0x800f, make([]byte, 32)...), number{}},
		{"string", leaf(0x8010, 3, 0, 'a', 'b', 'c'), number{}},
		{"utf-8 string", leaf(0x801b, 'a', 0), number{}},
		{"decimal", leaf(0x8019, make([]byte, 16)...), number{}},
		{"date", leaf(0x801a, make([]byte, 8)...), number{}},
		{"real16", leaf(0x801c, 0, 0), number{}},
	} {
		c := cursor{p: append(tt.in, 0x55)}
		if got := c.numeric(); got != tt.want || c.bad || len(c.p) != 1 {
			t.Errorf("%s: %+v with %d bytes left, want %+v with 1", tt.name, got, len(c.p), tt.want)
		}
	}
	c := cursor{p: leaf(0x8011)}
	if c.numeric(); !c.bad {
		t.Error("an unknown numeric leaf is read over")
	}
}

func TestSymbolsOfEveryForm(t *testing.T) {
	p := &pdbtest.PDB{Machine: MachineX86, Age: 7, GUID: [16]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16},
		Sections: []pdbtest.Section{{Name: ".text", RVA: 0x1000, Size: 0x2000}, {Name: "PAGEDATA", RVA: 0x4000, Size: 0x1000}},
		Symbols: [][]byte{
			rec(symPub, uint32(2), uint32(0x10), uint16(1), "_NtClose@4"),
			rec(symPubST, uint32(0), uint32(0x20), uint16(2), st("_PsActiveProcessHead")),
			rec(symPub16, uint32(0x30), uint16(2), uint16(0), st("_Old")),
			rec(symGData, uint32(0x22), uint32(0x40), uint16(2), "NtBuildNumber"),
			rec(symLDataST, uint32(0x22), uint32(0x50), uint16(1), st("Local")),
			rec(symGData16, uint32(0x60), uint16(1), uint16(0x22), st("Sixteen")),
			rec(symPub, uint32(0), uint32(0x70), uint16(9), "_Nowhere"),
			rec(symPub, uint32(0), uint32(0x80), uint16(1), "_Dead"),
			rec(0x1107, uint32(0x74), num(5), "S_CONSTANT"),
		}, Dead: map[int]bool{7: true}}
	read := func(p *pdbtest.PDB) (out []string) {
		f := openBytes(t, p.Bytes())
		if err := f.Symbols(func(s Symbol) bool {
			out = append(out, fmt.Sprintf("%s %#x %v %v", s.Name, s.RVA, s.Public, s.Code))
			return true
		}); err != nil {
			t.Fatal(err)
		}
		return out
	}
	want := []string{"_NtClose@4 0x1010 true true", "_PsActiveProcessHead 0x4020 true false", "_Old 0x4030 true false",
		"NtBuildNumber 0x4040 false false", "Local 0x1050 false false", "Sixteen 0x1060 false false"}
	if got := read(p); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	f := openBytes(t, p.Bytes())
	if f.Machine() != MachineX86 || f.Info().Age != 7 || f.Info().GUIDText() != "0403020106050807090A0B0C0D0E0F10" {
		t.Errorf("machine %#x, age %d, GUID %s", f.Machine(), f.Info().Age, f.Info().GUIDText())
	}
	// A program that was reordered after it was linked: section 1 was at 0x1000, its
	// second half is at 0x9000 now, and what lay at 0x4020 is gone.
	p.Original, p.Sections = p.Sections, []pdbtest.Section{{Name: ".text", RVA: 0x8000, Size: 0x3000}}
	p.Omap = [][2]uint32{{0x1000, 0x8000}, {0x1040, 0x9000}, {0x2000, 0x8040}, {0x4020, 0}, {0x4030, 0xa000}}
	want = []string{"_NtClose@4 0x8010 true true", "_Old 0xa000 true false", "NtBuildNumber 0xa010 false false", "Local 0x9010 false false",
		"Sixteen 0x9020 false false"}
	if got := read(p); !reflect.DeepEqual(got, want) {
		t.Errorf("reordered: got  %q\nwant %q", got, want)
	}
}

func TestContainerOfSmallBlocks(t *testing.T) {
	p := &pdbtest.PDB{BlockSize: 512, Machine: MachineX86}
	for i := range 3000 {
		fields := p.Add(list(leafFieldList, entry(leafMember, public, uint32(0x22), num(uint64(i)), "M")))
		p.Add(rec(leafStructure, uint16(1), uint16(0), fields, uint32(0), uint32(0), num(uint64(i)+4), fmt.Sprintf("S%d", i)))
	}
	types := typesOf(t, p)
	for _, i := range []uint32{0, 1234, 2999} {
		if got, want := describe(t, types, pdbtest.FirstType+2*i+1), fmt.Sprintf("S%d %d, %d M/4", i, i+4, i); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestWhatIsRefused(t *testing.T) {
	good := (&pdbtest.PDB{Machine: MachineX64, Sections: []pdbtest.Section{{Name: ".text", RVA: 0x1000}}}).Bytes()
	change := func(f func(b []byte)) []byte {
		b := bytes.Clone(good)
		f(b)
		return b
	}
	put := binary.LittleEndian.PutUint32
	self := &pdbtest.PDB{}
	self.Add(list(leafFieldList, entry(leafIndex, uint16(0), uint32(pdbtest.FirstType))))
	unknown := &pdbtest.PDB{}
	unknown.Add(list(leafFieldList, entry(0x1499, uint32(0))))
	loop := &pdbtest.PDB{}
	loop.Add(rec(leafModifier, uint32(pdbtest.FirstType), uint16(1)))
	cut := &pdbtest.PDB{}
	cut.Add([]byte{0x05, 0x15, 0, 0})
	beyond := &pdbtest.PDB{Symbols: [][]byte{rec(symPub, uint32(0))}}
	old := &pdbtest.PDB{TypeVersion: 19961031}
	read := func(data []byte) error {
		f, err := Open(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			return err
		}
		types, err := f.Types()
		if err != nil {
			return err
		}
		for i := range types.Count() {
			index := types.First() + uint32(i)
			if types.leaf(index) == leafFieldList {
				if _, err := types.Members(index); err != nil {
					return err
				}
			}
			if _, err := types.Size(index); err != nil {
				return err
			}
		}
		return f.Symbols(func(Symbol) bool { return true })
	}
	for _, tt := range []struct {
		name string
		data []byte
		want error
		text string
	}{
		{"empty", nil, ErrNotPDB, "superblock"},
		{"other", []byte(strings.Repeat("x", 4096)), ErrNotPDB, "signature"},
		{"2.00", append([]byte(msfMagic2), make([]byte, 100)...), ErrUnsupported, "2.00"},
		{"block size", change(func(b []byte) { put(b[32:], 1000) }), ErrCorrupt, "blocks of 1000"},
		{"cut off", good[:len(good)-4096], ErrCorrupt, "cut off"},
		{"block map", change(func(b []byte) { put(b[52:], 1<<30) }), ErrCorrupt, "block map"},
		{"directory", change(func(b []byte) { put(b[44:], 1<<31) }), ErrCorrupt, "directory"},
		{"list without end", self.Bytes(), ErrCorrupt, "continues itself"},
		{"unknown member", unknown.Bytes(), ErrCorrupt, "0x1499"},
		{"modifier of itself", loop.Bytes(), ErrCorrupt, "without an end"},
		{"record too short", cut.Bytes(), ErrCorrupt, "does not fit"},
		{"symbol too short", beyond.Bytes(), ErrCorrupt, "too short"},
		{"type version", old.Bytes(), ErrUnsupported, "19961031"},
	} {
		err := read(tt.data)
		if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %v, want %v with %q", tt.name, err, tt.want, tt.text)
		}
	}
	if err := read(good); err != nil {
		t.Errorf("the sound one: %v", err)
	}
}

// FuzzOpen reads all of a PDB: every error is one, nothing panics, and nothing grows
// beyond what the bounds allow.
func FuzzOpen(f *testing.F) {
	p := &pdbtest.PDB{Machine: MachineX86, BlockSize: 512, Sections: []pdbtest.Section{{Name: ".text", RVA: 0x1000, Size: 0x1000}},
		Symbols: [][]byte{rec(symPubST, uint32(2), uint32(16), uint16(1), st("_A"))}}
	xpTypes(p)
	f.Add(p.Bytes())
	p.Omap, p.Original = [][2]uint32{{0x1000, 0x2000}}, p.Sections
	f.Add(p.Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := Open(bytes.NewReader(data), int64(len(data)))
		if (file == nil) == (err == nil) {
			t.Fatalf("Open = %v, %v", file, err)
		}
		if err != nil {
			return
		}
		n := 0
		_ = file.Symbols(func(Symbol) bool { n++; return true })
		if n > len(data) {
			t.Fatalf("%d symbols in %d bytes", n, len(data))
		}
		types, err := file.Types()
		if err != nil {
			return
		}
		for i := range types.Count() {
			index := types.First() + uint32(i)
			ty, err := types.Resolve(index)
			if err == nil && ty.Fields != 0 {
				_, _ = types.Members(ty.Fields)
			}
			_, _ = types.Size(index)
		}
	})
}

// FuzzTypes feeds the records alone, which a fuzzer of whole files seldom reaches.
func FuzzTypes(f *testing.F) {
	for _, r := range [][]byte{
		rec(leafStructureST, uint16(2), uint16(0), uint32(0x1000), uint32(0), uint32(0), num(8), st("_A")),
		list(leafFieldList, entry(leafMember, public, uint32(0x22), num(0), "M"), entry(leafIndex, uint16(0), uint32(0x1001))),
		list(leafFieldList16, entry(leafMember16, uint16(0x22), public, num(0), st("M")),
			entry(leafOneMethod16, uint16(3|4<<2), uint16(0x1000), uint32(0), st("F"))),
		rec(leafEnum, uint16(1), uint16(propUnique), uint32(0x74), uint32(0x1001), "E", "?E"),
	} {
		f.Add(append(binary.LittleEndian.AppendUint16(nil, uint16(len(r))), r...))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		count := uint32(0)
		for at := 0; at+2 <= len(data); count++ {
			at += 2 + int(binary.LittleEndian.Uint16(data[at:]))
		}
		types, err := newTypes(data, firstIndex, count)
		if (types == nil) && err == nil {
			t.Fatal("neither types nor an error")
		}
		if err != nil {
			return
		}
		for i := range count {
			members, err := types.Members(firstIndex + i)
			if err != nil && members != nil || len(members) > maxMembers {
				t.Fatalf("%d members, %v", len(members), err)
			}
			_, _ = types.Size(firstIndex + i)
		}
	})
}
