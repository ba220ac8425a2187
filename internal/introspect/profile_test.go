package introspect

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"vmav.dev/vmav/internal/ntguest"
	"vmav.dev/vmav/internal/winstruct"
)

// Every symbol file there is imports, and has every structure and symbol that
// introspection needs.
func TestEverySymbolFileHasWhatIsNeeded(t *testing.T) {
	if testing.Short() {
		t.Skip("imports 35 symbol files")
	}
	var files []string
	for _, up := range []string{"../../../", "../../../../"} {
		more, _ := filepath.Glob(up + "shared/isf/*.json.xz")
		files = append(files, more...)
	}
	if len(files) == 0 {
		t.Skip("no symbol files beside this checkout (../shared/isf); the built-in profiles are tested without them")
	}
	for _, file := range files {
		p, err := winstruct.Open(file)
		if err == nil {
			err = Usable(p)
		}
		if err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
	t.Logf("%d symbol files", len(files))
}

func TestEveryBuiltInProfileHasWhatIsNeeded(t *testing.T) {
	store := winstruct.BuiltIn()
	for _, e := range store.List() {
		p, err := store.Open(e)
		if err == nil {
			err = Usable(p)
		}
		if err != nil {
			t.Errorf("%s: %v", e.Version, err)
		}
	}
}

func TestAMissingFactIsNamed(t *testing.T) {
	store := winstruct.BuiltIn()
	p, err := store.Open(store.List()[0])
	if err != nil {
		t.Fatal(err)
	}
	err = Usable(p.Trim([]string{"_EPROCESS", "_KPROCESS"}, nil, []string{"PsActiveProcessHead"}))
	var missing *winstruct.MissingFactsError
	if !errors.As(err, &missing) {
		t.Fatalf("Usable = %v", err)
	}
	for _, want := range []string{"sym(PspCidTable)", "_PEB.Ldr", "sizeof(_MMVAD)"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
}

// place is one structure in the memory of a guest.
type place struct {
	as *AddressSpace
	at uint64
}

// places finds structures of every kind that introspection reads.
func places(t *testing.T, g *Guest) map[string][]place {
	t.Helper()
	ctx := context.Background()
	out := make(map[string][]place)
	add := func(as *AddressSpace, at uint64, names ...string) {
		if at == 0 {
			return
		}
		for _, name := range names {
			out[name] = append(out[name], place{as, at})
		}
	}
	word := func(as *AddressSpace, at uint64) uint64 {
		v, err := as.word(at)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	procs, _, err := g.Processes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	table := word(g.as, g.kernel.Base+g.off.Sym.CidTable)
	add(g.as, table, "_HANDLE_TABLE")
	code := word(g.as, table+uint64(g.off.HandleTableCode))
	for code&3 != 0 { // down to a page of entries
		code = word(g.as, code&^3)&^3 | (code&3 - 1)
	}
	for i := uint64(1); i < 16; i++ {
		add(g.as, code+16*i, "_HANDLE_TABLE_ENTRY")
	}
	add(g.as, g.kernel.Base+g.off.Sym.MiState, "_MI_SYSTEM_INFORMATION")
	for i := range procs {
		p := &procs[i]
		add(g.as, p.EPROCESS, "_EPROCESS")
		add(g.as, p.EPROCESS-uint64(g.off.ObjectBody), "_OBJECT_HEADER")
		if token := word(g.as, p.EPROCESS+uint64(g.off.Process.Token)) &^ 0xf; token != 0 {
			add(g.as, token, "_TOKEN")
			add(g.as, word(g.as, token+uint64(g.off.Token.Users)), "_SID_AND_ATTRIBUTES")
		}
		add(g.as, word(g.as, p.EPROCESS+uint64(g.off.Process.AuditName)), "_OBJECT_NAME_INFORMATION")
		if g.off.Process.Session != winstruct.Missing {
			add(g.as, word(g.as, p.EPROCESS+uint64(g.off.Process.Session)), "_MM_SESSION_SPACE")
		}
		if p.PEB == 0 || !p.Exited.IsZero() {
			continue
		}
		as := g.space(p.DTB)
		add(as, p.PEB, "_PEB")
		area := p.PEB &^ (1<<21 - 1)
		for at := area; at < area+1<<21; at += pageSize { // TEBs are near, and point to themselves
			if self, err := as.word(at + uint64(g.off.TEB.Self)); err == nil && self == at {
				add(as, at, "_TEB")
			}
		}
		add(as, p.PEB32, "_PEB32")
		if p.Wow64 && g.off.Ewow64PEB != winstruct.Missing {
			add(g.as, word(g.as, p.EPROCESS+uint64(g.off.Process.Wow64)), "_EWOW64PROCESS")
		}
		add(as, word(as, p.PEB+uint64(g.off.PEB.Parameters)), "_RTL_USER_PROCESS_PARAMETERS")
		ldr := word(as, p.PEB+uint64(g.off.PEB.Ldr))
		add(as, ldr, "_PEB_LDR_DATA")
		if ldr != 0 {
			add(as, word(as, ldr+uint64(g.off.Ldr.Load))-uint64(g.off.Entry.Load), "_LDR_DATA_TABLE_ENTRY")
		}
		root := word(g.as, p.EPROCESS+uint64(g.off.VAD.TreeRoot))
		add(g.as, root, "_MMVAD_SHORT", "_MMVAD")
		if root == 0 {
			continue
		}
		add(g.as, root+uint64(g.off.VAD.Flags), "_MMVAD_FLAGS")
		for at := root; at != 0; at = word(g.as, at+uint64(g.off.VAD.Left)) {
			sub := word(g.as, at+uint64(g.off.VAD.Subsection))
			if sub>>47 != 1<<17-1 {
				continue
			}
			if _, err := g.as.word(sub); err != nil {
				continue // a short node's neighbour in the pool
			}
			add(g.as, sub, "_SUBSECTION")
			control := word(g.as, sub+uint64(g.off.SubsectionControl))
			add(g.as, control, "_CONTROL_AREA")
			add(g.as, sub+uint64(g.off.Subsection.Flags), "_MMSUBSECTION_FLAGS")
			add(g.as, control+uint64(g.off.Control.Flags), "_MMSECTION_FLAGS")
			file := word(g.as, control+uint64(g.off.ControlFile)) &^ 0xf
			add(g.as, file, "_FILE_OBJECT")
			pointers := word(g.as, file+uint64(g.off.FilePointers))
			add(g.as, pointers, "_SECTION_OBJECT_POINTERS")
			if cache := word(g.as, pointers+uint64(g.off.Pointers.Cache)); cache != 0 {
				add(g.as, cache, "_SHARED_CACHE_MAP")
				add(g.as, word(g.as, word(g.as, cache+uint64(g.off.Cache.Vacbs))), "_VACB")
			}
		}
	}
	first := word(g.as, g.kernel.Base+g.off.Sym.LoadedModuleList) - uint64(g.off.Driver.Links)
	add(g.as, first, "_KLDR_DATA_TABLE_ENTRY", "_LDR_DATA_TABLE_ENTRY")
	// Any word can be read as an entry of a page table.
	add(g.as, procs[0].EPROCESS, "_MMPTE_TRANSITION")
	return out
}

// fact is a member that introspection reads, as its tag declares it.
type fact struct {
	structure, path string
	field           winstruct.Field
}

// facts are those of Offsets that the build has.
func facts(t *testing.T, p *winstruct.Profile) (out []fact) {
	var walk func(ty reflect.Type)
	walk = func(ty reflect.Type) {
		for i := range ty.NumField() {
			tag, ok := ty.Field(i).Tag.Lookup("win")
			if !ok {
				if ft := ty.Field(i).Type; ft.Kind() == reflect.Struct && ft != reflect.TypeOf(winstruct.Field{}) {
					walk(ft)
				}
				continue
			}
			for _, name := range strings.Split(strings.TrimSuffix(tag, ",optional"), "|") {
				structure, path, ok := strings.Cut(name, ".")
				if !ok {
					continue // a size or a symbol
				}
				if f, err := p.Field(structure, path); err == nil {
					out = append(out, fact{structure, path, f})
				}
			}
		}
	}
	walk(reflect.TypeOf(Offsets{}))
	return out
}

// What vtypes reads of a structure in a guest and what the compiled offset reads is the
// same, for every member that introspection uses.
func TestVtypesAndCompiledOffsetsReadTheSame(t *testing.T) {
	for _, build := range []string{"6.1.7601", "10.0.19041", "10.0.22000"} {
		s := lay(t, ntguest.Options{Build: build, Seed: 11, KVAShadow: build != "6.1.7601", FileCache: true})
		g := open(t, s)
		p, err := winstruct.BuiltIn().Find(g.kernel.Identity)
		if err != nil {
			t.Fatal(err)
		}
		at := places(t, g)
		compared, nonZero := 0, 0
		for _, f := range facts(t, p) {
			st, _ := p.Struct(f.structure)
			d, err := p.NewDumper(f.structure)
			if err != nil {
				t.Fatal(err)
			}
			if len(at[f.structure]) == 0 {
				t.Errorf("%s: no %s in the guest to read %s in", build, f.structure, f.path)
			}
			for _, pl := range at[f.structure] {
				mem := make([]byte, st.Size)
				if err := pl.as.Read(mem, pl.at); err != nil {
					if errors.Is(err, ErrNotPresent) {
						continue // the end of a large structure may be
					}
					t.Fatal(err)
				}
				values, err := d.Dump(f.structure, mem)
				if err != nil {
					t.Fatal(err)
				}
				found := false
				for _, v := range values {
					// A member that is a structure is read by its first member.
					inside := strings.HasPrefix(v.Name, f.path+".") && v.Offset == f.field.Offset
					if v.Name != f.path && !inside {
						continue
					}
					found = true
					compared++
					if v.Bytes != nil {
						if want := mem[f.field.Offset:][:f.field.Size]; v.Name == f.path && !bytes.Equal(v.Bytes, want) {
							t.Errorf("%s: %s.%s at %#x: vtypes reads % x, the offset % x", build, f.structure, f.path, pl.at, v.Bytes, want)
						}
						continue
					}
					read := winstruct.Field{Offset: f.field.Offset, Size: v.Size, BitOffset: f.field.BitOffset, BitCount: f.field.BitCount}
					if inside {
						read.BitOffset, read.BitCount = v.BitOffset, v.BitCount
					}
					want := (record{mem, 8}).field(read)
					if want != 0 {
						nonZero++
					}
					if v.Value != want {
						t.Errorf("%s: %s.%s at %#x: vtypes reads %#x, the offset %#x", build, f.structure, v.Name, pl.at, v.Value, want)
					}
				}
				if !found {
					t.Errorf("%s: vtypes has no %s.%s", build, f.structure, f.path)
				}
			}
		}
		if nonZero < 500 {
			t.Errorf("%s: %d values compared, %d not zero: too little was tested", build, compared, nonZero)
		}
		t.Logf("%s: %d values compared, %d of them not zero", build, compared, nonZero)
	}
}

// The address of System is what the export says: a check that the test's view of the
// guest's words is right.
func TestInitialSystemProcessIsSystem(t *testing.T) {
	g := open(t, lay(t, ntguest.Options{Build: "10.0.19041", Seed: 1}))
	p, _ := winstruct.BuiltIn().Find(g.kernel.Identity)
	rva, ok := p.Symbol("PsInitialSystemProcess")
	if !ok {
		t.Fatal("no PsInitialSystemProcess")
	}
	var b [8]byte
	if err := g.as.Read(b[:], g.kernel.Base+rva); err != nil {
		t.Fatal(err)
	}
	procs, _, err := g.Processes(context.Background())
	if err != nil || procs[0].EPROCESS != binary.LittleEndian.Uint64(b[:]) {
		t.Errorf("PsInitialSystemProcess is %#x, System at %#x, %v", b, procs[0].EPROCESS, err)
	}
}
