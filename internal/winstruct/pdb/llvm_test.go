package pdb

import (
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

	"vmav.dev/vmav/internal/winstruct/pdb/pdbtest"
)

// realPDBs are PDBs of several compilers, where this checkout has them beside it.
func realPDBs(t testing.TB) []string {
	files := pdbtest.RealPDBs("../../..")
	if len(files) == 0 {
		t.Skip(pdbtest.NoRealPDBs)
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

func hexOf(t *testing.T, s string) uint32 {
	t.Helper()
	v, err := strconv.ParseUint(s, 16, 32)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(v)
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
			want, err := pdbtest.LLVMTypes(file)
			if err != nil {
				t.Fatal(err)
			}
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

func compareType(t *testing.T, types *Types, all map[uint32]*pdbtest.LLVMType, got Type, w *pdbtest.LLVMType, compared *int) {
	t.Helper()
	check := func(what string, got, want any) {
		t.Helper()
		*compared++
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %s is %v, llvm-pdbutil says %v\n%s", w.Leaf, what, got, want, w.Text)
		}
	}
	if strings.HasPrefix(w.Leaf, "unknown") {
		// What can be said of a record that this LLVM is too old for: its members lie in it.
		members, err := types.Members(got.Fields)
		for _, m := range members {
			if size, serr := types.Size(m.Type); serr != nil || m.Offset+size > got.Size {
				t.Errorf("%s %q of %d bytes: member %s at %d has %d bytes, %v", w.Leaf, got.Name, got.Size, m.Name, m.Offset, size, serr)
			}
		}
		if err != nil || got.Name == "" || got.Forward != (got.Fields == 0) {
			t.Errorf("%s: %+v with %d members, %v", w.Leaf, got, len(members), err)
		}
		return
	}
	switch w.Leaf {
	case "LF_STRUCTURE", "LF_CLASS", "LF_UNION":
		check("name", got.Name, w.Name)
		check("size", got.Size, w.Field("sizeof "))
		check("field list", uint64(got.Fields), w.Field("field list: "))
		check("declaration", got.Forward, strings.Contains(w.Text, "forward ref"))
		if to := w.Field("forward ref (-> "); to != 0 {
			def, err := types.Resolve(got.Index)
			if err != nil {
				t.Error(err)
			}
			// The same type can be defined twice; the first counts.
			if d := all[uint32(to)]; uint64(def.Index) != to && (def.Forward || d.Name != def.Name || d.Field("sizeof ") != def.Size) {
				t.Errorf("declaration %#x of %s leads to %#x, llvm-pdbutil says %#x", got.Index, got.Name, def.Index, to)
			}
			*compared++
		}
	case "LF_ENUM":
		check("name", got.Name, w.Name)
		check("underlying type", uint64(got.Elem), w.Field("underlying type: "))
		check("field list", uint64(got.Fields), w.Field("field list: "))
	case "LF_ARRAY":
		check("size", got.Size, w.Field("size: "))
		check("element", uint64(got.Elem), w.Field("element type: "))
	case "LF_BITFIELD":
		check("word", uint64(got.Elem), w.Field("type = "))
		check("first bit", got.BitOffset, w.Field("bit offset = "))
		check("bits", got.BitCount, w.Field("# bits = "))
	case "LF_MODIFIER":
		check("referent", uint64(got.Elem), w.Field("referent = "))
	case "LF_POINTER":
		check("referent", uint64(got.Elem), w.Field("referent = "))
		if !strings.Contains(w.Text, "member") { // pointers to members have sizes of their own
			check("bits", got.Size*8, w.Field("kind = ptr"))
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
		for l := w; l != nil; l = all[l.Next] {
			wanted = append(wanted, l.Members...)
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
			if len(rvas) != len(f.dbi.sections) {
				t.Fatalf("%d sections, llvm-pdbutil prints %d", len(f.dbi.sections), len(rvas))
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
