package ntguest

import (
	"fmt"
	"path/filepath"

	"vmav.dev/vmav/internal/winstruct"
)

// builds32 are the 32-bit builds that the guest can be laid out as. See layoutBuild.
var builds32 = []struct {
	name, layout, pdb string
	pae               bool
}{
	{"6.1.7601-x86", "6.1.7601.17514", "ntkrnlmp.pdb", false},
	{"6.1.7601-x86-pae", "6.1.7601.24000", "ntkrpamp.pdb", true},
	{"10.0.19041-x86", "10.0.19041.0", "ntkrpamp.pdb", true},
}

// Builds32 returns the 32-bit builds that Options.Build may name.
func Builds32() ([]Build, error) {
	var out []Build
	layouts := winstruct.BuiltIn().Layouts()
	for _, w := range builds32 {
		for _, e := range layouts {
			if e.Version != w.layout || e.Arch != winstruct.ArchX86 {
				continue
			}
			b := layoutBuild(w.name, w.pdb, e)
			b.X86, b.PAE = true, w.pae
			out = append(out, b)
		}
	}
	if len(out) != len(builds32) {
		return nil, fmt.Errorf("the built-in layouts hold %d of the guest's %d 32-bit builds", len(out), len(builds32))
	}
	return out, nil
}

func (b *builder) x86() bool { return b.build.X86 }
func (b *builder) pae() bool { return b.build.PAE }

// ptr is the size of a pointer in bytes; word is the same, for addresses.
func (b *builder) ptr() uint32 { return b.profile.PointerSize() }

func (b *builder) word() uint64 { return uint64(b.ptr()) }

// form32 is how the page tables of a 32-bit guest are built.
func (b *builder) form32() form {
	f := form{top: 22, step: 10, pte: 4, user: 1 << 31}
	if b.pae() {
		f.top, f.step, f.pte = 30, 9, 8
	}
	if b.opts.ThreeGB {
		f.user = 0xc0000000
	}
	return f
}

// systemRoot32 is the frame of the System process's root, which the boot loader allocates, on
// a page of its own with the four directories of PAE behind it.
const systemRoot32 = 0x185

// The page tables map themselves here.
const tables32 = 0xc0000000

// newRoot32 is the physical address of four empty top entries for PAE. Windows allocates them
// from pages below 4 GiB that hold many.
func (b *builder) newRoot32() uint64 {
	const size = 32
	if len(b.roots) == 0 {
		page := b.mem.allocLow() << pageShift
		for off := uint64(size); off < pageSize; off += size { // the first has no process
			b.roots = append(b.roots, page+off)
		}
	}
	root := b.roots[0]
	b.roots = b.roots[1:]
	return root
}

// makeDirectories makes the four page directories of a PAE root, which Windows allocates with
// it. Its entries have no rights.
func (s *space) makeDirectories() {
	for i := range uint64(4) {
		pfn := systemRoot32 + 1 + i
		if s.dtb>>pageShift == systemRoot32 {
			s.mem.allocAt(pfn)
		} else {
			pfn = s.mem.alloc()
		}
		s.mem.put64(s.dtb+8*i, pfn<<pageShift|pteValid)
	}
}

// mapDirectories makes them map themselves.
func (s *space) mapDirectories() {
	for i := range uint64(4) {
		s.mem.put64(s.directory(3)+8*i, s.directory(i)|pteValid|pteWrite|pteAccessed|pteDirty)
	}
}

// directory is the physical address of one of the four.
func (s *space) directory(i uint64) uint64 { return s.mem.get64(s.dtb+8*i) & ptePFN }

// shareKernel gives a process the kernel's part of the System process's tables, with a self
// map of its own, now that all the kernel's tables exist.
func (s *space) shareKernel(kernel *space) {
	for va := s.user; va < 1<<32; va += 1 << s.covers() {
		if va>>30 == tables32>>30 && va < tables32+1<<30>>pageShift*s.pte { // the self map
			continue
		}
		from, to := kernel.dtb, s.dtb
		if s.pte == 8 {
			from, to = kernel.directory(va>>30), s.directory(va>>30)
		}
		off := s.index(va, s.covers())
		s.mem.putEntry(to+off, s.mem.entry(from+off, s.pte), s.pte)
	}
	s.mapItself()
}

// mapItself makes the entry for itself of a page directory without PAE.
func (s *space) mapItself() {
	if s.pte == 4 {
		s.mem.putEntry(s.dtb+s.index(tables32, 22), s.dtb|pteValid|pteWrite|pteAccessed|pteDirty, 4)
	}
}

// layoutSpaces32 makes the System process's page tables and divides the kernel's part of the
// address space.
func (b *builder) layoutSpaces32() {
	root := b.mem.allocAt(systemRoot32) << pageShift
	b.kernel = b.newSpace(root)
	b.kernel.mapItself()
	data := uint64(pteWrite | pteDirty | pteNX | pteGlobal)
	region := func(va, withThreeGB uint64) arena {
		if b.opts.ThreeGB {
			va = withThreeGB
		}
		va += b.rng.Uint64N(16) << 16
		return arena{s: b.kernel, start: va, next: va, bits: data}
	}
	b.nonPaged = region(0x85000000, 0xc9000000)
	b.system = region(0x8c000000, 0xd8000000)
	b.paged = region(0x92000000, 0xe8000000)
	b.runtime = region(0xf0000000, 0xf8000000)
}

// kernelBase32 is where the kernel lies: low in its part of the address space, or above where
// the page tables and the system's working set are.
func (b *builder) kernelBase32() uint64 {
	if b.opts.ThreeGB {
		return 0xe0800000 + b.rng.Uint64N(1<<8)<<pageShift
	}
	return 0x82600000 + b.rng.Uint64N(1<<9)<<pageShift
}

// mingwPaths are the folders of Debian packages of mingw-w64 that have real 32-bit DLLs.
func mingwPaths() []string {
	paths, err := filepath.Glob("/usr/lib/gcc/i686-w64-mingw32/*-win32")
	if err != nil {
		panic(err) // a bad pattern
	}
	return append(paths, "/usr/i686-w64-mingw32/lib", "/usr/i686-w64-mingw32/bin")
}

// Registers32 has the registers of a 32-bit processor from which the kernel can be found.
type Registers32 struct {
	CR0, CR3, CR4, EFER, IDT, EIP uint64
}

// Registers32 returns the registers of the first processor: in the kernel with System's
// page tables if pid is 0, or else in user mode in the process with that id. With KVA
// shadow that is on its user page tables.
func (m *Machine) Registers32(pid uint64) (Registers32, bool) {
	b := m.b
	r := Registers32{CR0: 0x80010033, CR4: 0x6d8, IDT: b.cpus[0].idt, CR3: b.kernel.dtb, EIP: b.sym("KeBugCheckEx")}
	if b.pae() {
		r.CR4 |= 1 << 5
		r.EFER = 0x800 // NX
	}
	if pid == 0 {
		return r, true
	}
	for _, p := range b.procs {
		if p.pid == pid && p.user != nil {
			r.CR3, r.EIP = p.space.dtb, p.exe.base+p.exe.file.entry
			if p.userRoot != 0 {
				r.CR3 = p.userRoot
			}
			return r, true
		}
	}
	return r, false
}
