package winstruct

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// symbolFiles are real symbol files, where this checkout has them beside it.
func symbolFiles(t testing.TB) []string {
	files, _ := filepath.Glob("../../../shared/isf/*.json.xz")
	more, _ := filepath.Glob("../../../../shared/isf/*.json.xz")
	return append(files, more...)
}

func TestEveryBuiltInProfileLoadsAndHasWhatItIsFor(t *testing.T) {
	s := BuiltIn()
	n := 0
	for _, e := range s.List() {
		if e.Layer != "built-in" {
			continue
		}
		n++
		if e.Err != nil {
			t.Errorf("%s: %v", e.Identity, e.Err)
			continue
		}
		p, err := s.Find(e.Identity)
		if err != nil {
			t.Errorf("%s: %v", e.Identity, err)
			continue
		}
		var need struct {
			PID   uint32 `win:"_EPROCESS.UniqueProcessId"`
			Links uint32 `win:"_EPROCESS.ActiveProcessLinks"`
			DTB   uint32 `win:"_EPROCESS.Pcb.DirectoryTableBase"`
			Head  uint64 `win:"sym(PsActiveProcessHead)"`
		}
		if err := Compile(p, &need); err != nil {
			t.Errorf("%s: %v", e.Version, err)
		}
		if need.DTB != 0x28 {
			t.Errorf("%s: DirectoryTableBase at %#x of _EPROCESS; every x64 build has it at 0x28", e.Version, need.DTB)
		}
	}
	if n < 35 {
		t.Errorf("%d built-in profiles, want at least 35", n)
	}
}

func TestSaveAndLoadKeepEverything(t *testing.T) {
	s := BuiltIn()
	p, err := s.Find(s.List()[0].Identity)
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	if err := p.Save(&buf); err != nil {
		t.Fatal(err)
	}
	q, err := Load(bytes.NewReader(buf.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(p, q) {
		t.Error("a profile read back differs from the one that was written")
	}
	for at := 0; at < buf.Len(); at += 97 {
		damaged := bytes.Clone(buf.Bytes())
		damaged[at] ^= 0x10
		if q, err := Load(bytes.NewReader(damaged)); err == nil && !reflect.DeepEqual(p, q) {
			t.Fatalf("a flipped bit at %d went unnoticed", at)
		}
		if _, err := Load(bytes.NewReader(buf.Bytes()[:at])); err == nil {
			t.Fatalf("a file cut off at %d loads", at)
		}
	}
}

func TestSymbolFilesGiveTheBuiltInProfiles(t *testing.T) {
	files := symbolFiles(t)
	if len(files) == 0 {
		t.Log("no symbol files beside this checkout; only what is built in was tested")
	}
	s := BuiltIn()
	for _, file := range files {
		p, err := ImportISFFile(file)
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		have, err := s.Find(p.Identity)
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		want := Pack(p)
		want.Version, want.Sources = have.Version, have.Sources
		for _, name := range want.Structs() {
			a, _ := want.Struct(name)
			b, _ := have.Struct(name)
			if !reflect.DeepEqual(a, b) {
				t.Errorf("%s: %s in the built-in profile differs from its symbol file; run packgen", p.Key(), name)
			}
		}
		if !reflect.DeepEqual(want.symbols, have.symbols) {
			t.Errorf("%s: symbols of the built-in profile differ from its symbol file; run packgen", p.Key())
		}
	}
}

// What symbol files may say that those at hand do not: constants beyond the sign bit, null,
// fractions and what later versions add.
func TestSymbolFileOfUnusualForm(t *testing.T) {
	text := `{"later": [1.5e3, true, null, {"a": "\u0041\n"}],
	"metadata": {"format": "6.2.0", "producer": null, "windows":
		{"pdb": {"GUID": "0123456789abcdef0123456789ABCDEF", "age": 10, "database": "ntkrnlmp.pdb", "machine_type": 34404}}},
	"base_types": {"int": {"size": 4, "signed": true, "kind": "int", "endian": "little"}, "pointer": {"size": 8}},
	"user_types": {"_A": {"kind": "struct", "size": 16, "fields": {
		"Quote\"d": {"offset": 8, "type": {"kind": "pointer", "subtype": null}, "anonymous": false},
		"E": {"offset": 0, "type": {"kind": "enum", "name": "_E"}}}}},
	"enums": {"_E": {"size": 4, "base": "int", "constants": {"Top": 18446744071562067968, "Low": -1}}},
	"symbols": {"S": {"address": 4096, "type": null, "linkage_name": "_S"}, "Far": {"address": 18446744073709551615}}}`
	p, err := ImportISF(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	if p.Key() != "0123456789ABCDEF0123456789ABCDEFA" || p.Arch != ArchX64 || !reflect.DeepEqual(p.Symbols(), []string{"S"}) {
		t.Errorf("%v %s %v", p.Identity, p.Arch, p.Symbols())
	}
	want := []Field{{Name: "E", Type: "_E", Size: 4}, {Name: `Quote"d`, Offset: 8, Type: "pointer", Size: 8}}
	if s, _ := p.Struct("_A"); s == nil || !reflect.DeepEqual(s.Fields, want) {
		t.Errorf("fields %+v, want %+v", s, want)
	}
	if e, _ := p.Enum("_E"); e["Top"] != -2147483648 || e["Low"] != -1 {
		t.Errorf("constants %v", e)
	}
	for _, bad := range []string{`{`, `{"symbols": {"S": {"address": "x"}}}`, text + "x", strings.Replace(text, `"6.2.0"`, `"5.0"`, 1),
		strings.Replace(text, "4096", "4096.5", 1)} {
		if p, err := ImportISF(strings.NewReader(bad)); err == nil {
			t.Errorf("%.40q imports as %v", bad, p)
		}
	}
}

func TestUnknownBuildIsNamed(t *testing.T) {
	id := Identity{PDB: "ntkrnlmp.pdb", GUID: strings.Repeat("AB", 16), Age: 3}
	_, err := BuiltIn().Find(id)
	var missing *MissingError
	if !errors.As(err, &missing) || missing.Identity != id {
		t.Fatalf("Find = %v, want a MissingError for %v", err, id)
	}
	for _, want := range []string{"ntkrnlmp.pdb", id.GUID, "age 3"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not name %s", err, want)
		}
	}
}

func TestNearBuildsComeFirst(t *testing.T) {
	store := BuiltIn()
	near := store.Near("10.0.19045")
	var got []string
	for _, e := range near {
		if e.Arch == ArchX64 && len(got) < 6 {
			got = append(got, e.Version)
		}
	}
	want := []string{"10.0.19041.3570", "10.0.19041.2364", "10.0.19041.1706", "10.0.19041.1237", "10.0.19041.329", "10.0.18362.836"}
	if !reflect.DeepEqual(got, want) || len(near) != len(store.List())+len(store.Layouts()) {
		t.Errorf("%d builds, first %v, want %v", len(near), got, want)
	}
}

// The head of a profile, which listings read, says what the whole says.
func TestHeadIsThatOfTheWhole(t *testing.T) {
	store := BuiltIn()
	for _, e := range store.List() {
		p, err := store.Open(e)
		if err != nil || p.Identity != e.Identity || p.Version != e.Version || !reflect.DeepEqual(p.Sources, e.Sources) {
			t.Errorf("%+v is %+v, %v", e, p, err)
		}
		if s, ok := p.SourceOf("_EPROCESS"); !ok || s.Verified == VerifiedNone {
			t.Errorf("%s: _EPROCESS is from %+v", e.Version, s)
		}
	}
	p, err := store.Open(store.List()[0])
	if err != nil {
		t.Fatal(err)
	}
	q := p.Trim([]string{"_LIST_ENTRY", "_EPROCESS"}, nil, []string{"PsActiveProcessHead"})
	q.Sources = []Source{{Of: "all", From: "a", Verified: VerifiedIdentity}, {Of: "symbols", From: "b", Verified: VerifiedNone},
		{Of: "_EPROCESS", From: "c", Verified: VerifiedInferred}}
	for name, want := range map[string]string{"_LIST_ENTRY": "a", "PsActiveProcessHead": "b", "_EPROCESS": "c"} {
		if s, ok := q.SourceOf(name); !ok || s.From != want {
			t.Errorf("%s is from %+v, want %s", name, s, want)
		}
	}
}

func TestCorruptUserProfileDoesNotHideTheOthers(t *testing.T) {
	data := t.TempDir()
	t.Setenv("XDG_DATA_HOME", data)
	s := OpenStore()
	all := s.List()
	bad, good := all[0].Identity, all[1].Identity
	dir, err := UserDir()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, FileName(bad)), []byte("garbage"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Find(bad); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("a corrupt user profile gives %v, want an error that names its file", err)
	}
	if _, err := s.Find(good); err != nil {
		t.Errorf("another build fails too: %v", err)
	}
}

func TestCompileNamesAllThatIsMissing(t *testing.T) {
	s := BuiltIn()
	p, err := s.Find(s.List()[0].Identity)
	if err != nil {
		t.Fatal(err)
	}
	var need struct {
		A uint32 `win:"_EPROCESS.NoSuchField"`
		B uint64 `win:"sym(NoSuchSymbol)"`
		C uint32 `win:"_EPROCESS.AlsoMissing,optional"`
		D uint32 `win:"_EPROCESS.Nope|_EPROCESS.UniqueProcessId"`
		E Field  `win:"_EPROCESS.BreakOnTermination"`
		F struct {
			G uint32 `win:"sizeof(_EPROCESS)"`
		}
	}
	err = Compile(p, &need)
	var missing *MissingFactsError
	if !errors.As(err, &missing) || !reflect.DeepEqual(missing.Facts, []string{"_EPROCESS.NoSuchField", "sym(NoSuchSymbol)"}) {
		t.Fatalf("Compile = %v", err)
	}
	if need.C != Missing || need.D == 0 || need.E.BitCount != 1 || need.F.G < 0x300 {
		t.Errorf("Compile filled %+v", need)
	}
}

func BenchmarkImportISF(b *testing.B) {
	files := symbolFiles(b)
	if len(files) == 0 {
		b.Skip("no symbol files beside this checkout")
	}
	for range b.N {
		if _, err := ImportISFFile(files[0]); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLoadBuiltIn(b *testing.B) {
	id := BuiltIn().List()[0].Identity
	for range b.N {
		if _, err := BuiltIn().Find(id); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReflection parses the same text as encoding/json does, for comparison.
func BenchmarkReflection(b *testing.B) {
	store := BuiltIn()
	packed, err := store.Packed(store.List()[0])
	if err != nil {
		b.Fatal(err)
	}
	text, err := decompress(packed)
	if err != nil {
		b.Fatal(err)
	}
	for range b.N {
		var into map[string]any
		if err := json.Unmarshal(text, &into); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzLoad(f *testing.F) {
	s := BuiltIn()
	p, err := s.Find(s.List()[0].Identity)
	if err != nil {
		f.Fatal(err)
	}
	var buf bytes.Buffer
	if err := p.Trim([]string{"_LIST_ENTRY", "_MMVAD_FLAGS"}, nil, []string{"PsActiveProcessHead"}).Save(&buf); err != nil {
		f.Fatal(err)
	}
	f.Add(buf.Bytes())
	f.Add([]byte(`{"vmav_profile":2,"pdb":"a.pdb","guid":"00000000000000000000000000000000","age":1,"arch":"x64",
		"types":[["_A",8,[["B",0,"Pointer",{"type":"_A"}]]]],"symbols":{"S":4096}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := LoadHandMade(bytes.NewReader(data))
		if (p == nil) == (err == nil) {
			t.Fatalf("Load = %v, %v", p, err)
		}
	})
}

func FuzzImportISF(f *testing.F) {
	f.Add([]byte(`{"metadata":{"format":"6.1.0","windows":{"pdb":{"GUID":"00000000000000000000000000000000","age":1,"database":"a.pdb","machine_type":34404}}},
		"base_types":{"int":{"size":4},"pointer":{"size":8}},"user_types":{"_A":{"size":16,"fields":{
		"B":{"offset":0,"type":{"kind":"pointer","subtype":{"kind":"struct","name":"_A"}}},
		"C":{"offset":8,"type":{"kind":"array","count":2,"subtype":{"kind":"base","name":"int"}}},
		"D":{"offset":8,"type":{"kind":"bitfield","bit_length":3,"bit_position":2,"type":{"kind":"base","name":"int"}}}}}},
		"enums":{},"symbols":{"S":{"address":4096}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := ImportISF(bytes.NewReader(data))
		if (p == nil) == (err == nil) {
			t.Fatalf("ImportISF = %v, %v", p, err)
		}
	})
}

// What a profile does not have is named, what readers need apart from what they can do
// without.
func TestAbsentFactsAreNamed(t *testing.T) {
	store := BuiltIn()
	p, err := store.Open(store.List()[0])
	if err != nil {
		t.Fatal(err)
	}
	var o struct {
		PID   uint32 `win:"_EPROCESS.UniqueProcessId"`
		Inner struct {
			A uint32 `win:"_EPROCESS.NoSuch|_EPROCESS.NorThis"`
			B Field  `win:"_EPROCESS.Perhaps,optional"`
		}
		Size uint32 `win:"sizeof(_NO_SUCH)"`
	}
	for _, dst := range []any{o, &o} {
		required, optional := Absent(p, dst)
		if !slices.Equal(required, []string{"_EPROCESS.NoSuch|_EPROCESS.NorThis", "sizeof(_NO_SUCH)"}) ||
			!slices.Equal(optional, []string{"_EPROCESS.Perhaps"}) {
			t.Errorf("required %q, optional %q", required, optional)
		}
	}
}
