package winstruct

import (
	"errors"
	"strings"
	"testing"

	"vmav.dev/vmav/internal/winstruct/pack"
)

// someFacts go through structures with and without a name.
var someFacts = []string{"_EPROCESS.UniqueProcessId", "_EPROCESS.VadRoot.Root", "_MMVAD_SHORT.u.VadFlags", "_MMVAD_SHORT.u1.VadFlags1.MemCommit",
	"_MMVAD_SHORT.u", "sizeof(_EPROCESS)", "sizeof(_NOTHING)", "sym(PsActiveProcessHead)", "sym(MiState)", "_EPROCESS.ImageFileName"}

// What is left of a profile reads the same, and says what it is asked for no more.
func TestOnlyKeepsWhatItIsAskedFor(t *testing.T) {
	store := BuiltIn()
	texts := make(map[string]bool)
	for _, e := range append(store.List(), store.Layouts()...) {
		p, err := store.Open(e)
		if err != nil {
			t.Fatal(err)
		}
		small, err := p.Only(someFacts)
		if err != nil {
			t.Fatal(err)
		}
		for _, fact := range someFacts {
			structure, path, ok := strings.Cut(fact, ".")
			if !ok {
				continue
			}
			want, wantErr := p.Field(structure, path)
			got, gotErr := small.Field(structure, path)
			if nameless(want.Type) {
				want.Type, got.Type = "", ""
			}
			if got != want || (gotErr == nil) != (wantErr == nil) {
				t.Errorf("%s: %s is %+v, %v; in the whole profile %+v, %v", e.Version, fact, got, gotErr, want, wantErr)
			}
		}
		if len(small.Structs()) > 12 || len(small.Symbols()) > 2 {
			t.Errorf("%s: %v and %v are left", e.Version, small.Structs(), small.Symbols())
		}
		for _, name := range small.Structs() {
			if s, _ := small.Struct(name); nameless(name) && !strings.HasPrefix(name, "_unnamed_") || s.Name != name {
				t.Errorf("%s: structure %q is still called %q", e.Version, name, s.Name)
			}
		}
		if again, err := small.Only(someFacts); err != nil || len(again.Structs()) != len(small.Structs()) {
			t.Errorf("%s: the same once more: %v", e.Version, err)
		}
		s, _ := small.Struct("_EPROCESS")
		texts[string(s.appendVtypes(nil))] = true
	}
	if len(texts) > 40 {
		t.Errorf("%d different _EPROCESS: equal ones are not recognised", len(texts))
	}
}

func TestFactsOfTags(t *testing.T) {
	var v struct {
		A uint32 `win:"_B.C|_A.B,optional"`
		N struct {
			F Field  `win:"_B.C"`
			S uint64 `win:"sym(X)"`
		}
		Plain int
	}
	if got := strings.Join(FactsOf(v, "Y"), " "); got != "_A.B _B.C sym(X) sym(Y)" {
		t.Errorf("FactsOf = %s", got)
	}
}

func TestNamesOfPacks(t *testing.T) {
	for name, ok := range map[string]bool{"kernels.pack": true, "a-b_9.pack": true, "": false, ".pack": false, "../a.pack": false, "a/b.pack": false,
		"a.b.pack": false, "-a.pack": false, "kernels": false, "a.pack\n": false, strings.Repeat("a", 65) + ".pack": false} {
		if err := CheckPackName(name); (err == nil) != ok {
			t.Errorf("CheckPackName(%q) = %v", name, err)
		}
	}
}

// FuzzKernelOfAPack puts hostile text where a pack has a structure and names. A kernel is
// refused, or it is the one that the pack's index names.
func FuzzKernelOfAPack(f *testing.F) {
	f.Add(`["_EPROCESS",2624,[["UniqueProcessId",1088,"pointer",{"size":8}]]]`, "x64", "none", "PsActiveProcessHead")
	f.Add(`["_EPROCESS",8,[]]],"guid":"11111111111111111111111111111111","types":[["_A",8,[]]`, "x86", "guest", "")
	f.Add(`],"facts":["sym(A)"]`, "arm64", "\x00", "A")
	f.Fuzz(func(t *testing.T, text, arch, verified, symbol string) {
		id := Identity{PDB: "ntkrnlmp.pdb", GUID: strings.Repeat("A", 32), Age: 1}
		b := pack.NewBuilder([]string{"_EPROCESS.UniqueProcessId"})
		source := pack.Source{Of: "all", From: text[:min(len(text), 64)], Verified: verified}
		if b.Add(pack.Kernel{PDB: id.PDB, GUID: id.GUID, Age: id.Age, Arch: arch, Sources: []pack.Source{source},
			Structs: []string{text}, Symbols: []pack.Symbol{{Name: symbol, RVA: 8}}}) != nil {
			return
		}
		data, err := b.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		k, err := OpenKernelPack(data)
		if err != nil {
			t.Fatal(err)
		}
		p, err := k.Find(id)
		if err != nil {
			if p != nil {
				t.Fatalf("%v with a profile", err)
			}
			if k.Check(func(*Profile) error { return nil }) == nil {
				t.Fatalf("%v, although the pack was checked", err)
			}
			return
		}
		if p.Identity != id || !p.Partial() {
			t.Fatalf("%s, partial %v", p.Identity, p.Partial())
		}
		file, err := k.FindPacked(id)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Load(strings.NewReader(string(file))); err != nil {
			t.Fatalf("as a file: %v", err)
		}
		other := id
		other.PDB = "ntoskrnl.pdb"
		if _, err := k.Find(other); !errors.Is(err, ErrNoProfile) {
			t.Fatalf("of another PDB: %v", err)
		}
	})
}
