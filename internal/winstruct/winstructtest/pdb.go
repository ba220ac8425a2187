// Package winstructtest has stores for tests, with a profile more or less, and makes what a
// symbol server would have: the PDB of a kernel whose profile is known.
package winstructtest

import (
	"encoding/hex"
	"fmt"

	"vmav.dev/vmav/internal/winstruct"
	"vmav.dev/vmav/internal/winstruct/pdb/pdbtest"
)

// Leaves and symbols of cvinfo.h.
const (
	leafPointer   = 0x1002
	leafFieldList = 0x1203
	leafBitField  = 0x1205
	leafArray     = 0x1503
	leafStructure = 0x1505
	leafMember    = 0x150d
	symPub        = 0x110e

	propForward = 1 << 7
	public      = uint16(3)
)

// PDB returns a program database with the identity, structures and symbols of a profile. Of
// members it has names, offsets, sizes, bit positions and nested structures.
func PDB(p *winstruct.Profile) []byte {
	machine := uint16(0x8664)
	if p.Arch == winstruct.ArchX86 {
		machine = 0x14c
	}
	return build(p, machine)
}

// OldPDB does what PDB does for a database that does not name its machine, as linkers of
// Windows XP's time made them.
func OldPDB(p *winstruct.Profile) []byte { return build(p, 0) }

func build(p *winstruct.Profile, machine uint16) []byte {
	g, err := hex.DecodeString(p.GUID)
	if err != nil || len(g) != 16 {
		panic(fmt.Sprintf("GUID %q", p.GUID))
	}
	out := &pdbtest.PDB{Age: p.Age, Machine: machine, Sections: []pdbtest.Section{{Name: ".text", RVA: 0x1000, Size: 0x2000000}},
		GUID: [16]byte{g[3], g[2], g[1], g[0], g[5], g[4], g[7], g[6], g[8], g[9], g[10], g[11], g[12], g[13], g[14], g[15]}}
	declared := make(map[string]uint32)
	for _, name := range p.Structs() {
		declared[name] = out.Add(pdbtest.Rec(leafStructure, uint16(0), uint16(propForward), uint32(0), uint32(0), uint32(0), pdbtest.Num(0), name))
	}
	words := map[uint32]uint32{1: 0x20, 2: 0x21, 4: 0x22, 8: 0x23}
	for _, name := range p.Structs() {
		s, _ := p.Struct(name)
		entries := make([][]byte, 0, len(s.Fields))
		for _, f := range s.Fields {
			var index uint32
			nested, isStruct := declared[f.Type]
			switch word, isWord := words[f.Size]; {
			case f.BitCount != 0 && isWord:
				index = out.Add(pdbtest.Rec(leafBitField, word, f.BitCount, f.BitOffset))
			case f.Type == "pointer":
				index = out.Add(pdbtest.Rec(leafPointer, uint32(0x03), f.Size<<13|0x0c))
			case isStruct:
				index = nested
			case isWord && f.Type != "array":
				index = word
			default:
				index = out.Add(pdbtest.Rec(leafArray, uint32(0x20), uint32(0x23), pdbtest.Num(f.Size), ""))
			}
			entries = append(entries, pdbtest.Entry(leafMember, public, index, pdbtest.Num(f.Offset), f.Name))
		}
		list := out.Add(pdbtest.List(leafFieldList, entries...))
		out.Add(pdbtest.Rec(leafStructure, uint16(len(s.Fields)), uint16(0), list, uint32(0), uint32(0), pdbtest.Num(s.Size), name))
	}
	for _, name := range p.Symbols() {
		if rva, _ := p.Symbol(name); rva >= 0x1000 {
			out.Symbols = append(out.Symbols, pdbtest.Rec(symPub, uint32(0), uint32(rva-0x1000), uint16(1), name))
		}
	}
	return out.Bytes()
}
