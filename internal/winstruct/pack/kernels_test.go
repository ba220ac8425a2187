package pack_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/ntguest"
	"vmav.dev/vmav/internal/source/sourcetest"
	"vmav.dev/vmav/internal/winstruct"
)

// builtIn are the profiles that are built in.
func builtIn(t testing.TB) (out []*winstruct.Profile) {
	t.Helper()
	store := winstruct.BuiltIn()
	for _, e := range store.List() {
		p, err := store.Open(e)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, p)
	}
	return out
}

// packed is a pack of profiles.
func packed(t testing.TB, profiles []*winstruct.Profile) []byte {
	t.Helper()
	b := winstruct.NewPackBuilder(introspect.Needed())
	for _, p := range profiles {
		if err := b.Add(p); err != nil {
			t.Fatal(err)
		}
	}
	data, err := b.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func opened(t testing.TB, data []byte) *winstruct.KernelPack {
	t.Helper()
	k, err := winstruct.OpenKernelPack(data)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// figures prints a pack's size, and how long a host takes to find one kernel in it.
func figures(t *testing.T, what string, data []byte, id winstruct.Identity) {
	t.Helper()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "kernels.pack")
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
	const rounds = 20
	var open, find time.Duration
	var k *winstruct.KernelPack
	for range rounds {
		begin := time.Now()
		read, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		k = opened(t, read)
		open += time.Since(begin)
		begin = time.Now()
		if _, err := k.Find(id); err != nil {
			t.Fatal(err)
		}
		find += time.Since(begin)
	}
	t.Logf("%s: %s; %d bytes, %d compressed; read and verified in %v, one kernel of it in %v", what, k.Summary(), len(data),
		len(z.EncodeAll(data, nil)), open/rounds, find/rounds)
}

// compiled are the offsets of a profile. The numbers that a symbol file gives to nameless
// structures are of no account.
func compiled(t testing.TB, p *winstruct.Profile) introspect.Offsets {
	t.Helper()
	var off introspect.Offsets
	if err := winstruct.Compile(p, &off); err != nil {
		t.Fatal(err)
	}
	return off
}

// sameThrough holds every kernel that is read through a pack against its own profile.
func sameThrough(t *testing.T, k winstruct.Finder, profiles []*winstruct.Profile) {
	t.Helper()
	for _, p := range profiles {
		got, err := k.Find(p.Identity)
		if err != nil {
			t.Fatalf("%s: %v", p.Identity, err)
		}
		if got.Identity != p.Identity || got.Arch != p.Arch || got.Version != p.Version || !reflect.DeepEqual(got.Sources, p.Sources) || !got.Partial() {
			t.Errorf("%s %s %s %v is %s %s %s %v in the pack", p.Identity, p.Arch, p.Version, p.Sources, got.Identity, got.Arch, got.Version, got.Sources)
		}
		if err := introspect.Usable(got); err != nil {
			t.Errorf("%s: %v", p.Identity, err)
		}
		if a, b := compiled(t, got), compiled(t, p); a != b {
			t.Errorf("%s: offsets differ:\n%+v\nits own:\n%+v", p.Identity, a, b)
		}
		symbols := 0
		for _, fact := range introspect.Needed() {
			name, ok := strings.CutPrefix(fact, "sym(")
			if !ok {
				continue
			}
			name = strings.TrimSuffix(name, ")")
			a, hasA := got.Symbol(name)
			b, hasB := p.Symbol(name)
			if a != b || hasA != hasB {
				t.Errorf("%s: %s at %#x %v, its own profile says %#x %v", p.Identity, name, a, hasA, b, hasB)
			}
			symbols++
		}
		if symbols < 5 || len(got.Symbols()) > symbols {
			t.Errorf("%s: %d symbols of which %d are needed", p.Identity, len(got.Symbols()), symbols)
		}
	}
}

func TestAPackReadsAsTheKernelsOwnProfiles(t *testing.T) {
	profiles := builtIn(t)
	if len(profiles) < 35 {
		t.Fatalf("%d built-in profiles", len(profiles))
	}
	data := packed(t, profiles)
	k := opened(t, data)
	if err := k.Check(introspect.Usable); err != nil {
		t.Fatal(err)
	}
	if k.Len() != len(profiles) || k.Layouts() >= k.Len() {
		t.Errorf("%d kernels with %d layouts, of %d profiles", k.Len(), k.Layouts(), len(profiles))
	}
	sameThrough(t, k, profiles)
	slices.Reverse(profiles)
	if !slices.Equal(packed(t, profiles), data) {
		t.Error("the order of the profiles changes the pack")
	}
	figures(t, "built-in profiles", data, profiles[0].Identity)
}

// What goes to a worker is a profile file.
func TestAKernelOfAPackGoesToAWorkerAsAFile(t *testing.T) {
	profiles := builtIn(t)
	k := opened(t, packed(t, profiles))
	sameThrough(t, throughFiles{k}, profiles[:5])
}

type throughFiles struct{ k *winstruct.KernelPack }

func (f throughFiles) Find(id winstruct.Identity) (*winstruct.Profile, error) {
	text, err := f.k.FindPacked(id)
	if err != nil {
		return nil, err
	}
	return winstruct.Load(strings.NewReader(string(text)))
}

// symbolFiles are real symbol files, where this checkout has them beside it.
func symbolFiles() (files []string) {
	for _, up := range []string{"../../../../shared/isf", "../../../../../shared/isf"} {
		more, _ := filepath.Glob(up + "/*.json.xz")
		files = append(files, more...)
	}
	return files
}

// A pack made of symbol files reads their kernels as the whole symbol files do, and their
// guests exactly.
func TestAPackOfSymbolFiles(t *testing.T) {
	if testing.Short() {
		t.Skip("imports 35 symbol files")
	}
	files := symbolFiles()
	if len(files) == 0 {
		t.Skip("no symbol files beside this checkout (../shared/isf); the built-in profiles are tested without them")
	}
	b := winstruct.NewPackBuilder(introspect.Needed())
	off := make(map[winstruct.Identity]introspect.Offsets)
	for _, file := range files {
		p, err := winstruct.Open(file)
		if err == nil {
			err = b.Add(p)
		}
		if err != nil {
			t.Fatal(err)
		}
		off[p.Identity] = compiled(t, p)
	}
	data, err := b.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	k := opened(t, data)
	var some winstruct.Identity
	for id, want := range off {
		p, err := k.Find(id)
		if err == nil {
			err = introspect.Usable(p)
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := compiled(t, p); got != want {
			t.Errorf("%s: offsets differ:\n%+v\nthe symbol file's:\n%+v", id, got, want)
		}
		some = id
	}
	readsGuests(t, k)
	figures(t, fmt.Sprintf("%d symbol files", len(files)), data, some)
}

// seen is what introspection reads of a guest.
type seen struct {
	Processes []introspect.Process
	Modules   map[uint64][]introspect.Module
	VADs      map[uint64][]introspect.VAD
	Drivers   []introspect.Module
	Problems  []string
}

func look(t *testing.T, m *ntguest.Machine, profiles winstruct.Finder) (out seen) {
	t.Helper()
	ctx := context.Background()
	g, err := introspect.Open(ctx, sourcetest.New(m, m.Memory), profiles)
	if err != nil {
		t.Fatal(err)
	}
	if k := g.Kernel(); k.Inferred != "" || len(k.Unproven) > 0 {
		t.Fatalf("inferred from %s without %v: a pack is exact", k.Inferred, k.Unproven)
	}
	note := func(problems []introspect.Problem, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range problems {
			out.Problems = append(out.Problems, fmt.Sprint(p))
		}
	}
	var problems []introspect.Problem
	out.Processes, problems, err = g.Processes(ctx)
	note(problems, err)
	out.Modules, out.VADs = make(map[uint64][]introspect.Module), make(map[uint64][]introspect.VAD)
	for i := range out.Processes {
		p := &out.Processes[i]
		out.Modules[p.EPROCESS], out.VADs[p.EPROCESS], problems, err = g.ModulesAndVADs(ctx, p)
		note(problems, err)
	}
	out.Drivers, problems, err = g.Drivers(ctx)
	note(problems, err)
	return out
}

// readsGuests reads the test guest, as every build whose kernel is in a pack, with the pack
// alone and with the kernel's own profile.
func readsGuests(t *testing.T, k winstruct.Finder) {
	t.Helper()
	builds, err := ntguest.Builds()
	if err != nil {
		t.Fatal(err)
	}
	read := 0
	for _, b := range builds {
		if _, err := k.Find(b.Identity); errors.Is(err, winstruct.ErrNoProfile) {
			continue
		}
		read++
		m, err := ntguest.Lay(ntguest.Options{Build: b.Name, Seed: 15, FileCache: true})
		if err != nil {
			t.Fatal(err)
		}
		own, packed := look(t, m, winstruct.BuiltIn()), look(t, m, k)
		if len(own.Processes) < len(m.Truth.Processes) || len(own.Drivers) == 0 {
			t.Fatalf("%s: %d processes of %d, %d drivers", b.Name, len(own.Processes), len(m.Truth.Processes), len(own.Drivers))
		}
		if !reflect.DeepEqual(own, packed) {
			t.Errorf("%s: with the pack alone:\n%+v\nwith its own profile:\n%+v", b.Name, packed, own)
		}
	}
	if read < 3 {
		t.Errorf("%d builds of the test guest are in the pack, want 3", read)
	}
}

func TestGuestsReadTheSameThroughAPack(t *testing.T) {
	readsGuests(t, opened(t, packed(t, builtIn(t))))
}

// reshaped is a profile with the process structure's size and members elsewhere.
func reshaped(t *testing.T, p *winstruct.Profile, by uint64) *winstruct.Profile {
	t.Helper()
	small, err := p.Only(introspect.Needed())
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := small.SaveText(&b); err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(b.String(), "\n")
	members := regexp.MustCompile(`\["(_EPROCESS|UniqueProcessId|ActiveProcessLinks|Peb|VadRoot|ThreadListHead)",\d+`)
	moved := members.ReplaceAllStringFunc(text, func(m string) string {
		name, n, _ := strings.Cut(m, ",")
		at, err := strconv.ParseUint(n, 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%s,%d", name, at+by)
	})
	if by != 0 && moved == text {
		t.Fatal("nothing moved")
	}
	out, err := winstruct.LoadHandMade(strings.NewReader(`{"vmav_profile":2,` + moved))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A pack of as many kernels as there are public ones: those that are known, 32-bit ones
// too, with symbols elsewhere and several layouts for each.
func TestAPackOfTwoThousandKernels(t *testing.T) {
	const many, most = 2000, 1 << 20
	var known []*winstruct.Profile
	store := winstruct.BuiltIn()
	for _, e := range append(store.List(), store.Layouts()...) {
		p, err := store.Open(e)
		if err != nil {
			t.Fatal(err)
		}
		for i := range uint64(5) {
			known = append(known, reshaped(t, p, 16*i))
		}
	}
	symbols := introspect.Needed()
	symbols = slices.DeleteFunc(symbols, func(f string) bool { return !strings.HasPrefix(f, "sym(") })
	rnd := rand.New(rand.NewPCG(15, 2000))
	b := winstruct.NewPackBuilder(introspect.Needed())
	made := make(map[winstruct.Identity]*winstruct.Profile)
	var last winstruct.Identity
	for range many {
		p := known[rnd.IntN(len(known))]
		rvas := make(map[string]uint64)
		for _, f := range symbols {
			rvas[f[len("sym("):len(f)-1]] = 0x200000 + 8*rnd.Uint64N(1<<21)
		}
		last = winstruct.Identity{PDB: p.PDB, GUID: fmt.Sprintf("%016X%016X", rnd.Uint64(), rnd.Uint64()), Age: 1 + rnd.Uint32N(2)}
		like := p.ForImage(last, rvas)
		like.Version = fmt.Sprintf("%s.%d", p.Version[:strings.LastIndex(p.Version, ".")], rnd.IntN(9000))
		made[last] = like
		if err := b.Add(like); err != nil {
			t.Fatal(err)
		}
	}
	data, err := b.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	figures(t, "made up", data, last)
	if len(data) >= most {
		t.Errorf("%d kernels in %d bytes, want less than %d", many, len(data), most)
	}
	k := opened(t, data)
	begin := time.Now()
	if err := k.Check(introspect.Usable); err != nil {
		t.Fatal(err)
	}
	t.Logf("checked as an import does in %v", time.Since(begin))
	if k.Len() != many || k.Layouts() < 150 {
		t.Errorf("%d kernels of %d with %d layouts", k.Len(), many, k.Layouts())
	}
	for id, p := range made {
		got, err := k.Find(id)
		if err != nil {
			t.Fatal(err)
		}
		if a, b := compiled(t, got), compiled(t, p); a != b {
			t.Errorf("%s: offsets differ:\n%+v\nit was packed with:\n%+v", id, a, b)
		}
	}
}

// What a pack was made without is not taken for what the build lacks.
func TestAPackSaysNothingOfWhatItWasNotAskedFor(t *testing.T) {
	p := builtIn(t)[0]
	b := winstruct.NewPackBuilder([]string{"_EPROCESS.UniqueProcessId", "_EPROCESS.NoSuchMember", "sym(PsActiveProcessHead)"})
	if err := b.Add(p); err != nil {
		t.Fatal(err)
	}
	data, err := b.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	k := opened(t, data)
	got, err := k.Find(p.Identity)
	if err != nil {
		t.Fatal(err)
	}
	var asked struct {
		PID  uint32 `win:"_EPROCESS.NoSuchMember|_EPROCESS.UniqueProcessId"`
		None uint32 `win:"_EPROCESS.NoSuchMember,optional"`
		Head uint64 `win:"sym(PsActiveProcessHead)"`
	}
	if err := winstruct.Compile(got, &asked); err != nil || asked.None != winstruct.Missing || asked.PID == 0 || asked.Head == 0 {
		t.Errorf("what was asked for: %+v, %v", asked, err)
	}
	var more struct {
		First uint32 `win:"_EPROCESS.Peb|_EPROCESS.UniqueProcessId"`
		Maybe uint64 `win:"sym(MiState),optional"`
		Size  uint32 `win:"sizeof(_EPROCESS),optional"`
	}
	var missing *winstruct.MissingFactsError
	err = winstruct.Compile(got, &more)
	if !errors.As(err, &missing) || !slices.Equal(missing.Unasked, []string{"_EPROCESS.Peb", "sizeof(_EPROCESS)", "sym(MiState)"}) || missing.Facts != nil {
		t.Errorf("what was not asked for: %v", err)
	}
	if err := k.Check(introspect.Usable); !errors.As(err, &missing) || !strings.Contains(err.Error(), "vmav's profile pack makes one") {
		t.Errorf("Check = %v", err)
	}
	if err := winstruct.NewPackBuilder(introspect.Needed()).Add(got); !errors.As(err, &missing) {
		t.Errorf("a pack with more facts than its source: %v", err)
	}
	if _, err := k.Find(builtIn(t)[1].Identity); !errors.Is(err, winstruct.ErrNoProfile) {
		t.Errorf("a kernel that is not there: %v", err)
	}
}

// The same kernel from two sources must be the same.
func TestSourcesThatContradictAreRefused(t *testing.T) {
	p := builtIn(t)[3]
	b := winstruct.NewPackBuilder(introspect.Needed())
	nameless := *p
	nameless.Version = ""
	for _, again := range []*winstruct.Profile{&nameless, p, &nameless} {
		if err := b.Add(again); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Add(p.ForImage(p.Identity, map[string]uint64{"PsActiveProcessHead": 0x1000})); err == nil || !strings.Contains(err.Error(), "says otherwise") {
		t.Errorf("other symbols: %v", err)
	}
	data, err := b.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := opened(t, data).Find(p.Identity); err != nil || got.Version != p.Version {
		t.Errorf("version %q, %v: one of the sources has %q", got.Version, err, p.Version)
	}
	layouts := winstruct.BuiltIn()
	layout, err := layouts.Open(layouts.Layouts()[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Add(layout); err == nil || !strings.Contains(err.Error(), "layout") {
		t.Errorf("a layout: %v", err)
	}
}

// A store finds kernels in its packs, after profiles, and says where they are from.
func TestAStoreFindsKernelsInPacks(t *testing.T) {
	profiles := builtIn(t)
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	path := write("kernels.pack", packed(t, profiles[1:]))
	if _, err := winstruct.Put(dir, profiles[2]); err != nil {
		t.Fatal(err)
	}
	store := winstruct.DirStore(dir)
	sameThrough(t, store, profiles[3:6])
	if p, err := store.Find(profiles[2].Identity); err != nil || p.Partial() {
		t.Errorf("a build with a profile: %v, %v", p.Partial(), err)
	}
	list := store.List()
	if len(list) != len(profiles) {
		t.Errorf("%d entries of a profile and a pack of %d kernels", len(list), len(profiles)-1)
	}
	n := 0
	for _, e := range list {
		if e.Err != nil || e.Layer != winstruct.PackLayer {
			continue
		}
		n++
		if e.Path != path || e.Name != "kernels.pack" || e.Version == "" {
			t.Errorf("entry %+v", e)
		}
		p, err := store.Open(e)
		if err != nil || p.Identity != e.Identity {
			t.Errorf("Open(%s) = %v", e.Identity, err)
		}
	}
	if n != len(profiles)-1 {
		t.Errorf("%d kernels listed, %d are in the pack", n, len(profiles)-1)
	}
	if near, layouts := len(store.Near("10.0.19041")), opened(t, packed(t, profiles[1:])).Layouts(); near != layouts+1 {
		t.Errorf("%d near builds of a profile and %d layouts", near, layouts)
	}

	// A new pack under the same name is seen; one that is damaged is named, and hides nothing.
	_, err := store.Find(profiles[0].Identity)
	if !errors.Is(err, winstruct.ErrNoProfile) {
		t.Errorf("a kernel that is nowhere: %v", err)
	}
	write("kernels.pack", packed(t, profiles))
	if _, err := store.Find(profiles[0].Identity); err != nil {
		t.Errorf("a kernel of the pack that replaced the first: %v", err)
	}
	damaged := packed(t, profiles)
	damaged[len(damaged)/2] ^= 1
	bad := write("a.pack", damaged)
	fresh := winstruct.DirStore(dir)
	if _, err := fresh.Find(profiles[9].Identity); err != nil {
		t.Errorf("beside a damaged pack: %v", err)
	}
	strange := profiles[0].Identity
	strange.Age = 77
	_, err = fresh.Find(strange)
	if !errors.Is(err, winstruct.ErrNoProfile) || !strings.Contains(err.Error(), bad) || !strings.Contains(err.Error(), "digest") {
		t.Errorf("a kernel that might be in the damaged pack: %v", err)
	}
	if !slices.ContainsFunc(fresh.List(), func(e winstruct.Entry) bool { return e.Path == bad && e.Err != nil }) {
		t.Error("the damaged pack is not listed")
	}
}
