package pe_test

import (
	"fmt"
	"strings"
)

// A bytecode signature is a program that the engine runs on a file which a logical
// signature has matched on. No compiler for them is packaged, so the test assembles
// one by hand: after the trigger the program asks the engine for the bytes that a file
// has at an RVA, for which the engine needs the file's section table to be right, and
// names the file only if they are what they should be. (What the instructions and the
// text form are: ClamAV's bytecode loader, libclamav/bytecode.c and clambc.h.)

// Types below this number are integers of so many bits, and pointers to them.
const (
	bcPointer8  = 65 // i8*
	bcFirstType = 69 // the first that a program declares
)

// Opcodes and calls that the program needs, by their numbers in the engine.
const (
	bcBranch  = 17
	bcJump    = 18
	bcReturn  = 19
	bcEqual   = 21
	bcCallAPI = 33

	bcSetVirusName = 5
	bcRawAddress   = 15
	bcByteAt       = 17
)

// bcText is bytecode in its text form: numbers as nibbles from the lowest on, in
// letters from '`' on.
type bcText struct{ strings.Builder }

// fixed writes the n low nibbles of v.
func (b *bcText) fixed(v uint64, n int) {
	for ; n > 0; n-- {
		b.WriteByte('`' | byte(v&15))
		v >>= 4
	}
}

// number writes v behind the count of its nibbles.
func (b *bcText) number(v ...uint64) {
	for _, v := range v {
		n := 0
		for x := v; x != 0; x >>= 4 {
			n++
		}
		b.fixed(uint64(n), 1)
		b.fixed(v, n)
	}
}

// constant writes v as an operand of so many bytes; of none it is a global's index.
func (b *bcText) constant(v uint64, bytes int) {
	var n bcText
	n.number(v)
	s := n.String()
	b.WriteByte(s[0] &^ 0x20)
	b.WriteString(s[1:])
	b.fixed(uint64(bytes), 1)
}

// data writes a string with its terminator.
func (b *bcText) data(s string) {
	b.WriteByte('|')
	b.number(uint64(len(s) + 1))
	for i := range len(s) {
		b.fixed(uint64(s[i]), 2)
	}
	b.fixed(0, 2)
}

// call writes a call of the engine's that returns 32 bits into the value dest.
func (b *bcText) call(dest, api uint64, operands int) {
	b.number(32, dest)
	b.fixed(bcCallAPI, 2)
	b.fixed(uint64(operands), 1)
	b.number(api)
}

// bytecodeSignature assembles a bytecode signature: it matches a PE file that has body,
// in hexadecimal, anywhere, and the bytes of want at rva by its own section table.
func bytecodeSignature(name, body string, rva uint32, want []byte) string {
	var head, types, apis, globals, code bcText

	head.WriteString("ClamBC")
	head.number(6, 1) // format, time
	head.data("vmav")
	head.number(0, 256, 0, 0, 0) // a logical signature's program, for engines of any level
	head.data("1")
	head.number(4+3+1, 1) // types, functions
	head.WriteString("p`clamcoincidencejb:16384")

	types.WriteByte('T')
	types.fixed(bcFirstType, 2)
	types.fixed(4, 1) // array of characters: the name
	types.number(uint64(len(name)+1), 8)
	types.fixed(1, 1) // i32 (i8*, i32)
	types.number(3, 32, bcPointer8, 32)
	types.fixed(1, 1) // i32 (i32)
	types.number(2, 32, 32)

	apis.WriteByte('E')
	apis.number(bcByteAt, 3)
	for _, a := range []struct {
		id, typ uint64
		name    string
	}{{bcSetVirusName, bcFirstType + 1, "setvirusname"}, {bcRawAddress, bcFirstType + 2, "pe_rawaddr"}, {bcByteAt, bcFirstType + 2, "file_byteat"}} {
		apis.number(a.id, a.typ)
		apis.data(a.name)
	}

	globals.WriteByte('G')
	globals.number(0, 3)
	globals.number(0) // none is numbered 0
	globals.WriteString("@`")
	globals.number(bcFirstType)
	component := func(v uint64) {
		var n bcText
		n.number(v)
		globals.WriteByte(n.String()[0] &^ 0x20)
		globals.WriteString(n.String()[1:])
	}
	for i := range len(name) {
		component(uint64(name[i]))
	}
	component(0)
	globals.WriteByte('`')
	globals.number(bcPointer8)
	component(0) // offset
	component(1) // of that global
	globals.WriteByte('`')

	// Values: for each byte where it is, what it is, whether it is right; and the
	// result of the naming. Blocks: one for each byte, one that names, one that ends.
	n := uint64(len(want))
	code.WriteByte('A')
	code.fixed(0, 1)
	code.number(32)
	code.WriteByte('L')
	code.number(3*n + 1)
	for range want {
		for _, bits := range []uint64{32, 32, 1} {
			code.number(bits)
			code.fixed(0, 1)
		}
	}
	code.number(32)
	code.fixed(0, 1)
	code.WriteByte('F')
	code.number(4*n+3, n+2)
	code.WriteByte('\n')
	for i, w := range want {
		at, got, right := uint64(3*i), uint64(3*i+1), uint64(3*i+2)
		code.WriteByte('B')
		code.call(at, bcRawAddress, 1)
		code.constant(uint64(rva)+uint64(i), 4)
		code.call(got, bcByteAt, 1)
		code.number(at)
		code.number(1, right)
		code.fixed(bcEqual, 2)
		code.number(32, got)
		code.constant(uint64(w), 4)
		code.WriteByte('T')
		code.fixed(bcBranch, 2)
		code.number(right, uint64(i+1), n+1)
		code.WriteByte('\n')
	}
	code.WriteByte('B')
	code.call(3*n, bcSetVirusName, 2)
	code.constant(2, 0)
	code.constant(uint64(len(name)), 4)
	code.WriteByte('T')
	code.fixed(bcJump, 2)
	code.number(n + 1)
	code.WriteString("\nBT")
	code.fixed(bcReturn, 2)
	code.number(32)
	code.constant(0, 4)
	code.WriteByte('E')

	return fmt.Sprintf("%s\n%s.{};Engine:81-255,Target:1;0;%s\n%s\n%s\n%s\n%s\n", head.String(), name, body, types.String(), apis.String(), globals.String(),
		code.String())
}
