package pdbtest

import (
	"bufio"
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// NoRealPDBs is the reason given when a test that needs real PDBs is skipped.
const NoRealPDBs = "no PDBs beside this checkout (../shared/pdb); the reader is tested on those that the tests build"

// RealPDBs returns the paths of PDBs of several compilers, if they are in a directory
// beside the checkout at root.
func RealPDBs(root string) (files []string) {
	for _, up := range []string{"..", "../.."} {
		more, _ := filepath.Glob(filepath.Join(root, up, "shared/pdb/*.pdb"))
		files = append(files, more...)
	}
	return files
}

// LLVMType is a type record as llvm-pdbutil prints it.
type LLVMType struct {
	Leaf, Name, Text string
	Members          []string // of field lists: "name 0xTYPE offset", "name = value"
	Next             uint32   // the list that goes on
}

var (
	recordLine   = regexp.MustCompile("^ +0x([0-9A-F]+) \\| (LF_[A-Z_0-9]+) \\[size = \\d+\\](?: `(.*)`)?$")
	memberLine   = regexp.MustCompile("^ +- LF_MEMBER \\[name = `(.*)`, Type = 0x([0-9A-F]+)(?: \\(.*\\))?, offset = (\\d+), attrs")
	constantLine = regexp.MustCompile(`^ +- LF_ENUMERATE \[(.*) = (-?\d+)\]$`)
	unknownLine  = regexp.MustCompile(`^ +0x([0-9A-F]+) \| UNKNOWN RECORD \(0x(1608|1609|160A|160B)\)`)
	indexLine    = regexp.MustCompile(`^ +- LF_INDEX continuation = 0x([0-9A-F]+)`)
)

// LLVMTypes returns the types of a PDB as llvm-pdbutil prints them. That is an independent
// reader, which packaging/deps.sh installs.
func LLVMTypes(file string) (map[uint32]*LLVMType, error) {
	text, err := exec.Command("llvm-pdbutil", "dump", "--types", file).Output()
	if err != nil {
		return nil, fmt.Errorf("llvm-pdbutil dump --types %s: %w", file, err)
	}
	out := make(map[uint32]*LLVMType)
	index := func(digits string) uint32 {
		v, perr := strconv.ParseUint(digits, 16, 32)
		if perr != nil {
			err = perr
		}
		return uint32(v)
	}
	var cur *LLVMType
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if m := recordLine.FindStringSubmatch(line); m != nil {
			cur = &LLVMType{Leaf: m[2], Name: m[3]}
			out[index(m[1])] = cur
			continue
		}
		if m := unknownLine.FindStringSubmatch(line); m != nil {
			cur = &LLVMType{Leaf: "unknown 0x" + m[2]} // younger than this LLVM
			out[index(m[1])] = cur
			continue
		}
		if cur == nil {
			continue
		}
		cur.Text += line + "\n"
		if m := memberLine.FindStringSubmatch(line); m != nil {
			cur.Members = append(cur.Members, fmt.Sprintf("%s %#x %s", m[1], index(m[2]), m[3]))
		} else if m := constantLine.FindStringSubmatch(line); m != nil {
			cur.Members = append(cur.Members, fmt.Sprintf("%s = %s", m[1], m[2]))
		} else if m := indexLine.FindStringSubmatch(line); m != nil {
			cur.Next = index(m[1])
		}
	}
	if err == nil {
		err = lines.Err()
	}
	if err == nil && len(out) == 0 {
		err = fmt.Errorf("llvm-pdbutil prints no types of %s", file)
	}
	return out, err
}

// Field returns the number behind a word of the record's text, or 0 if the word is not
// there.
func (l *LLVMType) Field(word string) uint64 {
	_, rest, ok := strings.Cut(l.Text, word)
	if !ok {
		return 0
	}
	end := strings.IndexFunc(rest, func(r rune) bool { return !strings.ContainsRune("0123456789abcdefABCDEFx", r) })
	if end >= 0 {
		rest = rest[:end]
	}
	v, err := strconv.ParseUint(strings.ToLower(rest), 0, 64)
	if err != nil {
		return 0
	}
	return v
}
