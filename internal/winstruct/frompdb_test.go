package winstruct_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vmav.dev/vmav/internal/winstruct"
	"vmav.dev/vmav/internal/winstruct/cab/cabtest"
	"vmav.dev/vmav/internal/winstruct/pdb"
	"vmav.dev/vmav/internal/winstruct/pdb/pdbtest"
	"vmav.dev/vmav/internal/winstruct/winstructtest"
)

func importPDB(t *testing.T, data []byte, name string) *winstruct.Profile {
	t.Helper()
	p, err := winstruct.ImportPDB(bytes.NewReader(data), int64(len(data)), name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// A PDB with the structures of a real build gives a profile with the same identity,
// symbols, structures, offsets, sizes and bits.
func TestProfileOfAPDBHasWhatThePDBHas(t *testing.T) {
	for _, e := range winstruct.BuiltIn().List()[:3] {
		want, err := winstruct.BuiltIn().Find(e.Identity)
		if err != nil {
			t.Fatal(err)
		}
		got := importPDB(t, winstructtest.PDB(want), "NtKrnlMp.pdb")
		if got.Identity != want.Identity || got.Arch != want.Arch {
			t.Errorf("got %v %s, want %v %s", got.Identity, got.Arch, want.Identity, want.Arch)
		}
		for _, name := range want.Symbols() {
			a, _ := want.Symbol(name)
			if b, ok := got.Symbol(name); !ok || a != b {
				t.Errorf("%s: %s at %#x, %v; want %#x", e.Version, name, b, ok, a)
			}
		}
		fields := 0
		for _, name := range want.Structs() {
			a, _ := want.Struct(name)
			if strings.HasPrefix(name, "__unnamed") {
				continue // numbered by their places in the PDB
			}
			b, ok := got.Struct(name)
			if !ok || a.Size != b.Size || len(a.Fields) != len(b.Fields) {
				t.Errorf("%s: %s is %+v, want %+v", e.Version, name, b, a)
				continue
			}
			for i, f := range a.Fields {
				g := b.Fields[i]
				if f.Name != g.Name || f.Offset != g.Offset || f.Size != g.Size || f.BitOffset != g.BitOffset || f.BitCount != g.BitCount {
					t.Errorf("%s: %s.%s is %+v, want %+v", e.Version, name, f.Name, g, f)
				}
				fields++
			}
		}
		if fields < 1000 {
			t.Errorf("%s: %d fields were compared", e.Version, fields)
		}
	}
}

// Files are recognised by what is in them: a PDB, one in a cabinet, a profile.
func TestOpenTakesEveryForm(t *testing.T) {
	store := winstruct.BuiltIn()
	want, err := store.Open(store.List()[0])
	if err != nil {
		t.Fatal(err)
	}
	data := winstructtest.PDB(want)
	var packed, plain bytes.Buffer
	if err := errors.Join(want.Save(&packed), want.SaveText(&plain)); err != nil {
		t.Fatal(err)
	}
	handMade := bytes.Replace(plain.Bytes(), plain.Bytes()[bytes.Index(plain.Bytes(), []byte(`"sha256"`)):bytes.IndexByte(plain.Bytes(), '\n')], nil, 1)
	for name, content := range map[string][]byte{"ntkrnlmp.pdb": data, "ntkrnlmp.pd_": cabtest.MSZIP("ntkrnlmp.pdb", data), "a.json": plain.Bytes(),
		"b.json": handMade, "c.zst": packed.Bytes()} {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
		p, err := winstruct.Open(path)
		if err != nil || p.Identity != want.Identity {
			t.Errorf("%s: %v, %v", name, p, err)
		}
	}
	path := filepath.Join(t.TempDir(), "d.json")
	if err := os.WriteFile(path, bytes.Replace(plain.Bytes(), []byte(`"Flink",0`), []byte(`"Flink",1`), 1), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := winstruct.Open(path); err == nil || !strings.Contains(err.Error(), "digest") {
		t.Errorf("a changed profile: %v", err)
	}
}

func TestProfileOfAPDBSpellsTypes(t *testing.T) {
	rec, list, entry := pdbtest.Rec, pdbtest.List, pdbtest.Entry
	type num = pdbtest.Num
	const public = uint16(3)
	p := &pdbtest.PDB{Machine: 0x14c, Age: 1, Sections: []pdbtest.Section{{Name: ".text", RVA: 0x1000}},
		Symbols: [][]byte{
			rec(0x110e, uint32(0), uint32(0), uint16(1), "_NtClose@4"), rec(0x110e, uint32(0), uint32(4), uint16(1), "@ObfDereferenceObject@4"),
			rec(0x110e, uint32(0), uint32(8), uint16(1), "_PsActiveProcessHead"), rec(0x110e, uint32(0), uint32(12), uint16(1), "?f@@YAXXZ")}}
	consts := p.Add(list(0x1203, entry(0x1502, public, num(1), "One"), entry(0x1502, public, uint16(0x8000), uint8(0xff), "MinusOne")))
	enum := p.Add(rec(0x1507, uint16(2), uint16(0), uint32(0x74), consts, "_KIND"))
	inner := p.Add(list(0x1203, entry(0x150d, public, uint32(0x22), num(0), "Low"), entry(0x150d, public, enum, num(4), "Kind")))
	nameless := p.Add(rec(0x1506, uint16(2), uint16(0), inner, num(8), "<unnamed-tag>"))
	second := p.Add(rec(0x1506, uint16(2), uint16(0), inner, num(12), "<unnamed-tag>"))
	pointer := p.Add(rec(0x1002, nameless, uint32(0x800a)))
	pointers := p.Add(rec(0x1503, pointer, uint32(0x22), num(16), ""))
	matrix := p.Add(rec(0x1503, pointers, uint32(0x22), num(32), ""))
	bits := p.Add(rec(0x1205, uint32(0x22), uint8(3), uint8(5)))
	function := p.Add(rec(0x1008, uint32(3), uint8(0), uint8(0), uint16(0), uint32(0)))
	toFunction := p.Add(rec(0x1002, function, uint32(0x800a)))
	fields := p.Add(list(0x1203,
		entry(0x150d, public, nameless, num(0), ""), // its members are the owner's
		entry(0x150d, public, second, num(8), "u"),
		entry(0x150d, public, pointer, num(20), "Pointer"),
		entry(0x150d, public, matrix, num(24), "Matrix"),
		entry(0x150d, public, bits, num(56), "Bits"),
		entry(0x150d, public, toFunction, num(60), "Function")))
	p.Add(rec(0x1505, uint16(6), uint16(0), fields, uint32(0), uint32(0), num(64), "_S"))
	got := importPDB(t, p.Bytes(), "kernel.pdb")
	s, ok := got.Struct("_S")
	if !ok {
		t.Fatalf("no _S in %v", got.Structs())
	}
	var lines []string
	for _, f := range s.Fields {
		lines = append(lines, strings.Join(strings.Fields(f.String()), " "))
	}
	want := []string{"0x000 Low unsigned long", "0x004 Kind _KIND", "0x008 u __unnamed_1004", "0x014 Pointer __unnamed_1003*",
		"0x018 Matrix __unnamed_1003*[4][2]", "0x038 Bits unsigned long bits 5..7", "0x03c Function function*"}
	if strings.Join(lines, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
	if e, ok := got.Enum("_KIND"); !ok || e["One"] != 1 || e["MinusOne"] != -1 {
		t.Errorf("enumeration %v", e)
	}
	for name, want := range map[string]uint64{"NtClose": 0x1000, "ObfDereferenceObject": 0x1004, "PsActiveProcessHead": 0x1008, "?f@@YAXXZ": 0x100c} {
		if rva, ok := got.Symbol(name); !ok || rva != want {
			t.Errorf("%s at %#x, %v; want %#x in %v", name, rva, ok, want, got.Symbols())
		}
	}
}

// A profile of a real PDB has the sizes and offsets that llvm-pdbutil prints.
func TestProfilesOfRealPDBsAreWhatLLVMReads(t *testing.T) {
	files := pdbtest.RealPDBs("../..")
	if len(files) == 0 {
		t.Skip(pdbtest.NoRealPDBs)
	}
	for _, file := range files {
		p, err := winstruct.Open(file)
		if filepath.Base(file) == "fuzzed.pdb" {
			if !errors.Is(err, pdb.ErrCorrupt) {
				t.Errorf("%s: %v", file, err)
			}
			continue
		}
		if err != nil {
			t.Error(err)
			continue
		}
		types, err := pdbtest.LLVMTypes(file)
		if err != nil {
			t.Fatal(err)
		}
		defined := make(map[string]int)
		for _, ty := range types {
			if !strings.Contains(ty.Text, "forward ref") {
				defined[ty.Name]++
			}
		}
		fields := 0
		for _, ty := range types {
			switch ty.Leaf {
			case "LF_STRUCTURE", "LF_CLASS", "LF_UNION":
			default:
				continue
			}
			if strings.Contains(ty.Text, "forward ref") || defined[ty.Name] > 1 || strings.Contains(ty.Name, "<unnamed-") {
				continue
			}
			s, ok := p.Struct(ty.Name)
			if !ok || uint64(s.Size) != ty.Field("sizeof ") {
				t.Errorf("%s: %s is %+v, llvm-pdbutil says %d bytes", file, ty.Name, s, ty.Field("sizeof "))
				continue
			}
			have := make(map[string]bool)
			for _, f := range s.Fields {
				have[fmt.Sprintf("%s %d", f.Name, f.Offset)] = true
			}
			for l := types[uint32(ty.Field("field list: "))]; l != nil; l = types[l.Next] {
				for _, m := range l.Members {
					parts := strings.Fields(m) // name, type, offset
					if fields++; !have[parts[0]+" "+parts[2]] {
						t.Errorf("%s: %s has no %s at %s", file, ty.Name, parts[0], parts[2])
					}
				}
			}
		}
		if fields == 0 {
			t.Errorf("%s: nothing was compared", file)
		}
		t.Logf("%s: %d members compared", filepath.Base(file), fields)
	}
}

// A PDB that does not name its machine is of the one whose pointers its types have.
func TestAPDBWithoutAMachine(t *testing.T) {
	store := winstruct.BuiltIn()
	for _, e := range append(store.List(), store.Layouts()...) {
		p, err := store.Open(e)
		if err != nil {
			t.Fatal(err)
		}
		name := "PsActiveProcessHead"
		switch {
		case e.Version != "5.1.2600.5512" && e.Version != "5.2.3790.1830" && e.Version != "6.1.7601.24540":
			continue
		case p.Arch == winstruct.ArchX86:
			name = "_" + name
		}
		id := winstruct.Identity{PDB: "ntoskrnl.pdb", GUID: "32962337F0F646388B39535CD8DD70E8", Age: 2}
		got := importPDB(t, winstructtest.OldPDB(p.ForImage(id, map[string]uint64{name: 0x2000})), id.PDB)
		if rva, ok := got.Symbol("PsActiveProcessHead"); got.Arch != p.Arch || got.Identity != id || !ok || rva != 0x2000 {
			t.Errorf("%s: %s of %s with PsActiveProcessHead at %#x, want %s", e.Version, got.Identity, got.Arch, rva, p.Arch)
		}
		for _, path := range []string{"UniqueProcessId", "ActiveProcessLinks", "VadRoot"} {
			a, aerr := p.Field("_EPROCESS", path)
			b, berr := got.Field("_EPROCESS", path)
			if aerr != nil || berr != nil || a.Offset != b.Offset || a.Size != b.Size {
				t.Errorf("%s: _EPROCESS.%s is %+v, %v; want %+v, %v", e.Version, path, b, berr, a, aerr)
			}
		}
	}
}

func TestPDBsOfNoUseAreRefused(t *testing.T) {
	noTypes := &pdbtest.PDB{Machine: 0x8664}
	noSymbols := &pdbtest.PDB{Machine: 0x8664}
	noSymbols.Add(pdbtest.Rec(0x1505, uint16(0), uint16(0), uint32(0), uint32(0), uint32(0), pdbtest.Num(8), "_S"))
	other := &pdbtest.PDB{Machine: 0x200}
	typesOnly := &pdbtest.PDB{NoDebug: true}
	noPointers := &pdbtest.PDB{Sections: []pdbtest.Section{{Name: ".text", RVA: 0x1000}}}
	noPointers.Add(pdbtest.Rec(0x1505, uint16(0), uint16(0), uint32(0), uint32(0), uint32(0), pdbtest.Num(8), "_S"))
	for _, tt := range []struct {
		p    *pdbtest.PDB
		text string
	}{{noTypes, "no types"}, {noSymbols, "no public symbols"}, {other, "machine 0x200"}, {typesOnly, "machine 0x0"}, {noPointers, "machine 0x0"}} {
		data := tt.p.Bytes()
		if _, err := winstruct.ImportPDB(bytes.NewReader(data), int64(len(data)), "a.pdb"); err == nil || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%v, want an error with %q", err, tt.text)
		}
	}
}

func FuzzImportPDB(f *testing.F) {
	p, err := winstruct.BuiltIn().Find(winstruct.BuiltIn().List()[0].Identity)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(winstructtest.PDB(p.Trim([]string{"_LIST_ENTRY", "_MMVAD_FLAGS", "_UNICODE_STRING"}, nil, []string{"PsActiveProcessHead"})))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := winstruct.ImportPDB(bytes.NewReader(data), int64(len(data)), "a.pdb")
		if (p == nil) == (err == nil) {
			t.Fatalf("ImportPDB = %v, %v", p, err)
		}
	})
}
