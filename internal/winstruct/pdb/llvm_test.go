package pdb

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// realPDBs are PDBs of several compilers, where this checkout has them beside it.
func realPDBs(t testing.TB) []string {
	var files []string
	for _, up := range []string{"../", "../../"} {
		more, _ := filepath.Glob("../../../" + up + "shared/pdb/*.pdb")
		files = append(files, more...)
	}
	if len(files) == 0 {
		t.Skip("no PDBs beside this checkout (../shared/pdb); the reader is tested on those that the tests build")
	}
	return files
}

func openFile(path string) (*File, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return Open(bytes.NewReader(data), int64(len(data)))
}

// pdbutil runs llvm-pdbutil, an independent reader; packaging/deps.sh installs it.
func pdbutil(t *testing.T, args ...string) []byte {
	t.Helper()
	out, err := exec.Command("llvm-pdbutil", args...).Output()
	if err != nil {
		t.Fatalf("llvm-pdbutil %s: %v", strings.Join(args, " "), err)
	}
	return out
}

// llvmType is a type record as llvm-pdbutil prints it.
type llvmType struct {
	leaf, name, text string
	members          []string // of field lists: "name 0xTYPE offset"
	next             uint32
}

var (
	recordLine   = regexp.MustCompile("^ +0x([0-9A-F]+) \\| (LF_[A-Z_0-9]+) \\[size = \\d+\\](?: `(.*)`)?$")
	memberLine   = regexp.MustCompile("^ +- LF_MEMBER \\[name = `(.*)`, Type = 0x([0-9A-F]+)(?: \\(.*\\))?, offset = (\\d+), attrs")
	constantLine = regexp.MustCompile(`^ +- LF_ENUMERATE \[(.*) = (-?\d+)\]$`)
	unknownLine  = regexp.MustCompile(`^ +0x([0-9A-F]+) \| UNKNOWN RECORD \(0x(1608|1609|160A|160B)\)`)
	indexLine    = regexp.MustCompile(`^ +- LF_INDEX continuation = 0x([0-9A-F]+)`)
)

func hexOf(t *testing.T, s string) uint32 {
	t.Helper()
	v, err := strconv.ParseUint(s, 16, 32)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(v)
}

func llvmTypes(t *testing.T, file string) map[uint32]*llvmType {
	out := make(map[uint32]*llvmType)
	var cur *llvmType
	lines := bufio.NewScanner(bytes.NewReader(pdbutil(t, "dump", "--types", file)))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if m := recordLine.FindStringSubmatch(line); m != nil {
			cur = &llvmType{leaf: m[2], name: m[3]}
			out[hexOf(t, m[1])] = cur
			continue
		}
		if m := unknownLine.FindStringSubmatch(line); m != nil {
			cur = &llvmType{leaf: "unknown 0x" + m[2]} // younger than this LLVM
			out[hexOf(t, m[1])] = cur
			continue
		}
		if cur == nil {
			continue
		}
		cur.text += line + "\n"
		if m := memberLine.FindStringSubmatch(line); m != nil {
			cur.members = append(cur.members, fmt.Sprintf("%s %#x %s", m[1], hexOf(t, m[2]), m[3]))
		} else if m := constantLine.FindStringSubmatch(line); m != nil {
			cur.members = append(cur.members, fmt.Sprintf("%s = %s", m[1], m[2]))
		} else if m := indexLine.FindStringSubmatch(line); m != nil {
			cur.next = hexOf(t, m[1])
		}
	}
	if err := lines.Err(); err != nil || len(out) == 0 {
		t.Fatalf("llvm-pdbutil printed %d types of %s, %v", len(out), file, err)
	}
	return out
}

// field takes a hexadecimal or decimal number behind a word of llvm's text.
func (l *llvmType) field(t *testing.T, word string) uint64 {
	t.Helper()
	m := regexp.MustCompile(regexp.QuoteMeta(word) + `(0x[0-9A-F]+|\d+)`).FindStringSubmatch(l.text)
	if m == nil {
		return 0
	}
	v, err := strconv.ParseUint(strings.ToLower(m[1]), 0, 64)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// Every type of every real PDB is what llvm-pdbutil says it is: sizes, member offsets,
// bit fields, arrays, pointers, declarations and their definitions.
func TestTypesAreWhatLLVMReads(t *testing.T) {
	for _, file := range realPDBs(t) {
		if filepath.Base(file) == "fuzzed.pdb" {
			continue
		}
		t.Run(filepath.Base(file), func(t *testing.T) {
			f, err := openFile(file)
			if err != nil {
				t.Fatal(err)
			}
			types, err := f.Types()
			if err != nil {
				t.Fatal(err)
			}
			want := llvmTypes(t, file)
			if types.Count() != len(want) {
				t.Fatalf("%d types, llvm-pdbutil prints %d", types.Count(), len(want))
			}
			compared := 0
			for index, w := range want {
				got, err := types.At(index)
				if err != nil {
					t.Errorf("%#x: %v", index, err)
					continue
				}
				compareType(t, types, want, got, w, &compared)
			}
			if compared == 0 {
				t.Error("nothing was compared")
			}
			t.Logf("%d types, %d facts compared", len(want), compared)
		})
	}
}

func compareType(t *testing.T, types *Types, all map[uint32]*llvmType, got Type, w *llvmType, compared *int) {
	t.Helper()
	check := func(what string, got, want any) {
		t.Helper()
		*compared++
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %s is %v, llvm-pdbutil says %v\n%s", w.leaf, what, got, want, w.text)
		}
	}
	if strings.HasPrefix(w.leaf, "unknown") {
		// What can be said of a record that this LLVM is too old for: its members lie in it.
		members, err := types.Members(got.Fields)
		for _, m := range members {
			if size, serr := types.Size(m.Type); serr != nil || m.Offset+size > got.Size {
				t.Errorf("%s %q of %d bytes: member %s at %d has %d bytes, %v", w.leaf, got.Name, got.Size, m.Name, m.Offset, size, serr)
			}
		}
		if err != nil || got.Name == "" || got.Forward != (got.Fields == 0) {
			t.Errorf("%s: %+v with %d members, %v", w.leaf, got, len(members), err)
		}
		return
	}
	switch w.leaf {
	case "LF_STRUCTURE", "LF_CLASS", "LF_UNION":
		check("name", got.Name, w.name)
		check("size", got.Size, w.field(t, "sizeof "))
		check("field list", uint64(got.Fields), w.field(t, "field list: "))
		check("declaration", got.Forward, strings.Contains(w.text, "forward ref"))
		if to := w.field(t, "forward ref (-> "); to != 0 {
			def, err := types.Resolve(got.Index)
			if err != nil {
				t.Error(err)
			}
			// The same type can be defined twice; the first counts.
			if d := all[uint32(to)]; uint64(def.Index) != to && (def.Forward || d.name != def.Name || d.field(t, "sizeof ") != def.Size) {
				t.Errorf("declaration %#x of %s leads to %#x, llvm-pdbutil says %#x", got.Index, got.Name, def.Index, to)
			}
			*compared++
		}
	case "LF_ENUM":
		check("name", got.Name, w.name)
		check("underlying type", uint64(got.Elem), w.field(t, "underlying type: "))
		check("field list", uint64(got.Fields), w.field(t, "field list: "))
	case "LF_ARRAY":
		check("size", got.Size, w.field(t, "size: "))
		check("element", uint64(got.Elem), w.field(t, "element type: "))
	case "LF_BITFIELD":
		check("word", uint64(got.Elem), w.field(t, "type = "))
		check("first bit", got.BitOffset, w.field(t, "bit offset = "))
		check("bits", got.BitCount, w.field(t, "# bits = "))
	case "LF_MODIFIER":
		check("referent", uint64(got.Elem), w.field(t, "referent = "))
	case "LF_POINTER":
		check("referent", uint64(got.Elem), w.field(t, "referent = "))
		if !strings.Contains(w.text, "member") { // pointers to members have sizes of their own
			check("bits", got.Size*8, w.field(t, "kind = ptr"))
		}
	case "LF_FIELDLIST":
		members, err := types.Members(got.Index)
		if err != nil {
			t.Error(err)
			return
		}
		var have, wanted []string
		for _, m := range members {
			switch {
			case m.Base || m.VTable:
			case m.Type == 0:
				have = append(have, fmt.Sprintf("%s = %d", m.Name, m.Value))
			default:
				have = append(have, fmt.Sprintf("%s %#x %d", m.Name, m.Type, m.Offset))
			}
		}
		for l := w; l != nil; l = all[l.next] {
			wanted = append(wanted, l.members...)
		}
		check("members", strings.Join(have, "\n"), strings.Join(wanted, "\n"))
		*compared += len(have)
	}
}

// llvm-pdbutil's section headers and public symbols, and the addresses they give.
func TestSymbolsAreWhatLLVMReads(t *testing.T) {
	public := regexp.MustCompile("S_PUB32 \\[size = \\d+\\] `(.*)`\n +flags = ([a-z |]+), addr = (\\d+):(\\d+)")
	data := regexp.MustCompile("S_[GL]DATA32 \\[size = \\d+\\] `(.*)`\n +type = .*, addr = (\\d+):(\\d+)\n")
	section := regexp.MustCompile(`(?m)^ +([0-9A-F]+) virtual address$`)
	for _, file := range realPDBs(t) {
		if filepath.Base(file) == "fuzzed.pdb" {
			continue
		}
		t.Run(filepath.Base(file), func(t *testing.T) {
			f, err := openFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var rvas []uint64
			for _, m := range section.FindAllSubmatch(pdbutil(t, "dump", "--section-headers", file), -1) {
				rvas = append(rvas, uint64(hexOf(t, string(m[1]))))
			}
			if len(rvas) != len(f.Sections()) {
				t.Fatalf("%d sections, llvm-pdbutil prints %d", len(f.Sections()), len(rvas))
			}
			want := make(map[string]int)
			add := func(kind, name, seg, off string) {
				s, _ := strconv.Atoi(seg)
				o, _ := strconv.ParseUint(off, 10, 32)
				if s >= 1 && s <= len(rvas) {
					want[fmt.Sprintf("%s %s %#x", kind, name, rvas[s-1]+o)]++
				}
			}
			for _, m := range public.FindAllStringSubmatch(string(pdbutil(t, "dump", "--publics", file)), -1) {
				add(fmt.Sprintf("public code=%v", strings.Contains(m[2], "code") || strings.Contains(m[2], "function")), m[1], m[3], m[4])
			}
			for _, m := range data.FindAllStringSubmatch(string(pdbutil(t, "dump", "--globals", file)), -1) {
				add("data", m[1], m[2], m[3])
			}
			got := make(map[string]int)
			err = f.Symbols(func(s Symbol) bool {
				kind := "data"
				if s.Public {
					kind = fmt.Sprintf("public code=%v", s.Code)
				}
				got[fmt.Sprintf("%s %s %#x", kind, s.Name, s.RVA)]++
				return true
			})
			if err != nil {
				t.Fatal(err)
			}
			for s := range want {
				if got[s] == 0 {
					t.Errorf("llvm-pdbutil reads %s", s)
				}
			}
			for s := range got {
				if want[s] == 0 {
					t.Errorf("llvm-pdbutil does not read %s", s)
				}
			}
			if len(want) == 0 {
				t.Error("nothing was compared")
			}
			t.Logf("%d symbols compared", len(want))
		})
	}
}

func TestIdentityIsWhatLLVMReads(t *testing.T) {
	for _, file := range realPDBs(t) {
		if filepath.Base(file) == "fuzzed.pdb" {
			continue
		}
		f, err := openFile(file)
		if err != nil {
			t.Fatal(err)
		}
		sum := string(pdbutil(t, "dump", "--summary", file))
		guid := strings.ReplaceAll(regexp.MustCompile(`GUID: \{([0-9A-F-]+)\}`).FindStringSubmatch(sum)[1], "-", "")
		if f.Info().GUIDText() != guid {
			t.Errorf("%s: GUID %s, llvm-pdbutil says %s", file, f.Info().GUIDText(), guid)
		}
	}
}

func TestTheCorruptPDBIsRefused(t *testing.T) {
	for _, file := range realPDBs(t) {
		if filepath.Base(file) != "fuzzed.pdb" {
			continue
		}
		f, err := openFile(file)
		if err == nil {
			_, err = f.Types()
			if serr := f.Symbols(func(Symbol) bool { return true }); err == nil {
				err = serr
			}
		}
		if !errors.Is(err, ErrCorrupt) {
			t.Errorf("fuzzed.pdb: %v, want an ErrCorrupt", err)
		}
		t.Log(err)
	}
}
