package ntguest

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"vmav.dev/vmav/internal/winstruct"
)

// Build is one Windows build that the guest can be laid out as.
type Build struct {
	Name     string // as the command line takes it: "10.0.19041"
	Version  string // with the revision
	Major    int
	Minor    int
	Number   int
	X86      bool // 32-bit
	PAE      bool // with 64-bit page table entries
	Identity winstruct.Identity

	layout winstruct.Entry // what its structures are taken from, of a build without a profile
}

// builds names the kernels by file version; their facts are in vmav's profiles.
var builds = []string{"6.1.7601.24540", "10.0.19041.1237", "10.0.22000.978"}

// Builds returns the 64-bit builds that Options.Build may name.
func Builds() ([]Build, error) {
	var out []Build
	entries := winstruct.BuiltIn().List()
	for _, version := range builds {
		for _, e := range entries {
			if e.Version != version {
				continue
			}
			parts := strings.Split(version, ".")
			out = append(out, newBuild(strings.Join(parts[:3], "."), e))
		}
	}
	if len(out) != len(builds) {
		return nil, fmt.Errorf("the built-in profiles hold %d of the guest's %d builds", len(out), len(builds))
	}
	layouts, err := layoutBuilds64()
	return append(out, layouts...), err
}

// allBuilds returns the 64-bit and the 32-bit builds.
var allBuilds = sync.OnceValues(func() ([]Build, error) {
	wide, err := Builds()
	if err != nil {
		return nil, err
	}
	narrow, err := Builds32()
	return append(wide, narrow...), err
})

// newBuild is the build that a profile or layout is of.
func newBuild(name string, e winstruct.Entry) Build {
	parts := strings.Split(e.Version, ".")
	b := Build{Version: e.Version, Name: name, Identity: e.Identity}
	b.Major, _ = strconv.Atoi(parts[0])
	b.Minor, _ = strconv.Atoi(parts[1])
	b.Number, _ = strconv.Atoi(parts[2])
	return b
}

// Options choose what is laid out. The same options always give the same bytes.
type Options struct {
	Build     string // "10.0.19041"
	Seed      uint64
	MemoryMiB uint64 // RAM; 0 for 512; with more than 32 GiB a PAE guest uses what lies above them
	KVAShadow bool   // user page tables without the kernel; 10.0 and 32-bit builds only
	LA57      bool   // 5-level paging; 10.0 builds only
	Absent    bool   // leave pages of images out of processes, and some out of memory
	Trim      int    // percent of the pages of images to trim at random, headers too; for images of memory only
	FileCache bool   // the cache holds the files that are mapped, as far as Trim leaves it; for images of memory only
	Implants  bool   // processes hold what malware leaves: see Machine.Implants; for images of memory only
	Hide      string // name of a process to unlink from the process list
	ThreeGB   bool   // 32-bit builds: processes have 3 GiB of addresses, the kernel one
	Assets    string // directory of the guest's programs; "" to find it
}

// builder has all of the guest while it is laid out. Its methods panic with an error if
// something cannot be done; Lay returns that error.
type builder struct {
	opts    Options
	build   Build
	profile *winstruct.Profile
	lent    *winstruct.Profile // has the processors' structures where profile lacks them, else nil
	rng     *rand.Rand
	now     time.Time // of the moment that the memory shows
	boot    time.Time

	form
	roots     []uint64 // physical addresses of 32-byte roots that are free
	mem       *memory
	kernel    *space // the System process's
	shadow    *space // kernel half of user page tables, with KVA shadow
	selfIndex uint64

	nonPaged, paged, system, runtime arena
	image                            kernelImage

	types  map[string]objectType
	cookie uint64
	cid    *handleTable

	cpus     []cpu
	files    *files
	procs    []*process
	sessions map[int]uint64
	drivers  []driver
	blob     *blob
	implants []Implant
	live     liveState

	userSID string // of the account that session 1 belongs to

	truth Truth
}

// newBuilder prepares an empty guest.
func newBuilder(opts Options) (*builder, error) {
	known, err := allBuilds()
	if err != nil {
		return nil, err
	}
	b := &builder{opts: opts, sessions: make(map[int]uint64)}
	var names []string
	for _, k := range known {
		names = append(names, k.Name)
		if k.Name == opts.Build || k.Version == opts.Build {
			b.build = k
		}
	}
	if b.build.Name == "" {
		return nil, fmt.Errorf("no build %q: there are %s", opts.Build, strings.Join(names, ", "))
	}
	if opts.ThreeGB && !b.x86() {
		return nil, fmt.Errorf("build %s has all addresses that processes want", b.build.Name)
	}
	if b.x86() && opts.LA57 {
		return nil, fmt.Errorf("build %s has 32-bit paging", b.build.Name)
	}
	if opts.KVAShadow && b.build.Major < 10 && !b.x86() {
		return nil, fmt.Errorf("build %s has no KVA shadow", b.build.Name)
	}
	if opts.LA57 && b.build.Major < 10 {
		return nil, fmt.Errorf("build %s has no 5-level paging", b.build.Name)
	}
	if opts.MemoryMiB == 0 {
		opts.MemoryMiB = 512
	}
	if opts.MemoryMiB < 256 || opts.MemoryMiB > 1<<16 {
		return nil, fmt.Errorf("%d MiB of memory: 256 to 65536 are possible", opts.MemoryMiB)
	}
	if err := b.findProfile(); err != nil {
		return nil, err
	}
	b.form = b.newForm()
	b.rng = rand.New(rand.NewPCG(opts.Seed, uint64(b.build.Number)))
	b.boot = time.Date(2026, 3, 2, 7, 30, 0, 0, time.UTC).Add(time.Duration(b.rng.Uint64N(86400)) * time.Second)
	b.now = b.boot.Add(2 * time.Hour)
	b.mem = newMemory(opts.MemoryMiB<<20, b.rng)
	if b.pae() && b.mem.size > high {
		b.mem.next = high >> pageShift // all but what the processor takes below 4 GiB
	}
	b.cookie = b.rng.Uint64N(255) + 1
	b.userSID = fmt.Sprintf("S-1-5-21-%d-%d-%d-1001", b.rng.Uint32(), b.rng.Uint32(), b.rng.Uint32())
	if b.x86() {
		b.layoutSpaces32()
	} else {
		b.layoutSpaces()
	}
	return b, nil
}

// findProfile finds what the guest's structures are written with.
func (b *builder) findProfile() (err error) {
	if !b.build.hasLayoutOnly() {
		b.profile, err = winstruct.BuiltIn().Find(b.build.Identity)
		return err
	}
	if b.for57() {
		b.build.Identity = ownIdentity(b.build.Name+" la57", "ntkrla57.pdb")
	}
	if b.profile, err = b.build.ownProfile(); err != nil {
		return err
	}
	if b.for57() {
		if b.profile, err = pack57(b.profile); err != nil {
			return err
		}
	}
	if b.x86() {
		return nil
	}
	for _, e := range winstruct.BuiltIn().List() {
		if e.Version == lender {
			b.lent, err = winstruct.BuiltIn().Open(e)
			return err
		}
	}
	return fmt.Errorf("no profile of %s to take _KPCR of build %s from", lender, b.build.Name)
}

// lender is the build whose _KPCR and _KPRCB the guest takes, because the 64-bit layouts have
// only parts of them or nothing. vmav reads neither.
const lender = "10.0.22000.978"

// layoutSpaces makes the System process's page tables and divides the kernel half
// of the address space. Windows 7 has fixed regions; since Windows 10 each has a
// random PML4 slot ("Windows Internals", 7th edition, part 1, chapter 5). With LA57 what
// no 48-bit pointer form refers to lies in random PML5 slots: handles hold 44 bits of an
// object's address, prototype PTEs are named by 48.
func (b *builder) layoutSpaces() {
	taken := map[uint64]bool{0x1ef: true, 0x1f0: true, 0x1ff: true}
	slot := func(fixed uint64) uint64 {
		if b.build.Major < 10 {
			return fixed
		}
		for {
			if s := 0x110 + b.rng.Uint64N(0xd0); !taken[s] {
				taken[s] = true
				return s
			}
		}
	}
	root := b.mem.allocAt(0x187)
	if b.build.Major >= 10 {
		delete(b.mem.frames, root)
		root = b.mem.allocAt(0x1ad)
	}
	b.kernel = b.newSpace(root << pageShift)
	b.selfIndex = slot(0x1ed)
	base := func(fixed uint64) uint64 {
		return 0xffff000000000000 | slot(fixed)<<39 | b.rng.Uint64N(1<<8)<<21
	}
	data := uint64(pteWrite | pteDirty | pteNX | pteGlobal)
	slot5 := func() uint64 {
		for {
			if s := 0x100 + b.rng.Uint64N(0xff); !taken[s<<9] {
				taken[s<<9] = true
				return s
			}
		}
	}
	region := func(fixed uint64, wide bool) arena {
		va := base(fixed)
		if wide && b.opts.LA57 {
			va = 0xfe00000000000000 | slot5()<<48 | va&(1<<48-1)
		}
		return arena{s: b.kernel, start: va, next: va, bits: data}
	}
	b.nonPaged = region(0x1f5, false)
	b.paged = region(0x1f1, false)
	b.system = region(0x1f3, true)
	b.runtime = region(0x1f6, true)
	if b.opts.LA57 {
		b.selfIndex = slot5()
	}
	b.mem.put64(root<<pageShift+8*b.selfIndex, root<<pageShift|pteValid|pteWrite|pteAccessed|pteDirty|pteNX)
}

// newForm is how the guest's page tables are built.
func (b *builder) newForm() form {
	switch {
	case b.x86():
		return b.form32()
	case b.opts.LA57:
		return form{top: 48, step: 9, pte: 8, user: 1 << 47}
	}
	return form{top: 39, step: 9, pte: 8, user: 1 << 47}
}

// newRoot is the physical address of an empty root.
func (b *builder) newRoot() uint64 {
	if b.pae() {
		return b.newRoot32()
	}
	return b.mem.alloc() << pageShift
}

// sym returns the address of a kernel symbol.
func (b *builder) sym(name string) uint64 {
	va, ok := b.symbol(name)
	if !ok {
		panic(fmt.Errorf("build %s has no symbol %s", b.build.Version, name))
	}
	return va
}

func (b *builder) symbol(name string) (uint64, bool) {
	rva, ok := b.profile.Symbol(name)
	return b.image.base + rva, ok
}

// filetime is a time as Windows counts it: 100 ns since 1601.
func filetime(t time.Time) uint64 {
	const unixEpoch = 116444736000000000
	if t.IsZero() {
		return 0
	}
	return uint64(t.Unix())*10_000_000 + uint64(t.Nanosecond()/100) + unixEpoch
}
