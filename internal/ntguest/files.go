package ntguest

import (
	"fmt"
	"path/filepath"
	"strings"
)

// files is the guest's disk and what of it is mapped: each file as one image, at one
// address, for as long as the guest runs.
type files struct {
	b        *builder
	assets   string
	parsed   map[string]*peFile // by host path
	images   map[string]*image  // by guest path, lower case
	byName   map[string]*image  // DLLs by base name; 32-bit ones as "32:name"
	segments []BootSegment
	backing  [][]uint32
	volume   uint64 // DEVICE_OBJECT of the volume
	unbound  map[string]int
}

// image is a file mapped as an image section: the section's structures, and the
// bytes that its shared pages hold.
type image struct {
	file    *peFile
	path    string // as the guest sees it, without a device: \Windows\System32\ntdll.dll
	base    uint64
	content []byte          // relocated, imports not bound
	bound   []byte          // with imports bound: what the process sees after load
	private map[uint64]bool // pages that differ: private copies in each process

	segment     int // index for the runtime
	controlArea uint64
	fileObject  uint64
	section     uint64          // SECTION object
	proto       uint64          // address of the prototype PTEs
	frames      []uint64        // of the pages in memory; 0 for those that are not
	trimmed     map[uint64]bool // pages that no process has mapped
	cached      []bool          // pages of the file in the guest's cache
}

// hostPath finds the file that the guest has under a path. Programs of ours stand
// in for what no Debian package has.
func (fs *files) hostPath(name string, wow64 bool) (string, error) {
	dirs := []string{fs.assets, winePath}
	if wow64 {
		dirs = []string{filepath.Join(fs.assets, "syswow64")}
	}
	if fs.b.x86() {
		dirs = append([]string{filepath.Join(fs.assets, "x86"), filepath.Join(fs.assets, "syswow64")}, mingwPaths()...)
	}
	if name == "clam.exe" {
		dirs = []string{testfilesPath}
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		if _, ok := fs.parsed[path]; ok {
			return path, nil
		}
		f, err := readPE(path)
		if err == nil {
			fs.parsed[path] = f
			return path, nil
		}
		if !strings.Contains(err.Error(), "no such file") {
			return "", err
		}
	}
	return "", fmt.Errorf("no file %s for the guest in %q", name, dirs)
}

// open maps the file named host (a base name) as the guest's file at path.
func (fs *files) open(host, path string, wow64 bool) *image {
	if im := fs.images[strings.ToLower(path)]; im != nil {
		return im
	}
	hp, err := fs.hostPath(host, wow64)
	if err != nil {
		panic(err)
	}
	f := fs.parsed[hp]
	im := &image{file: f, path: path, base: fs.chooseBase(f, path, wow64)}
	im.content = f.relocated(im.base)
	fs.images[strings.ToLower(path)] = im
	if strings.HasSuffix(strings.ToLower(path), ".dll") {
		key := strings.ToLower(filepath.Base(strings.ReplaceAll(path, `\`, "/")))
		if f.pe32 && !fs.b.x86() {
			key = "32:" + key
		}
		fs.byName[key] = im
	}
	fs.buildSection(im)
	return im
}

// chooseBase picks where a file is mapped for as long as the system runs: DLLs from
// the top of the DLL area downwards in 64 KiB steps, programs wherever they ask to
// be or, if they can move, in the program area.
func (fs *files) chooseBase(f *peFile, path string, wow64 bool) uint64 {
	rva, size := f.dir(5)
	movable := rva != 0 && size != 0
	if !movable {
		return f.base
	}
	span := (f.size + 0xffff) &^ 0xffff
	isDLL := strings.HasSuffix(strings.ToLower(path), ".dll")
	rng := fs.b.rng
	switch {
	case isDLL && (f.pe32 || f.base < 1<<32): // what 32-bit code calls lies where it can
		fs.b.live.next32 -= span + rng.Uint64N(16)<<16
		return fs.b.live.next32
	case f.pe32:
		return 0x04000000 + rng.Uint64N(0x100)<<16
	case isDLL:
		fs.b.live.nextDLL -= span + rng.Uint64N(64)<<16
		return fs.b.live.nextDLL
	case fs.b.build.Major < 10:
		return 0x13f000000 + rng.Uint64N(0x400)<<16
	default:
		return 0x7ff600000000 + rng.Uint64N(0x8000)<<16
	}
}

// bind resolves an image's imports against every DLL of the guest, once: a DLL has
// the same address in each process. What nothing exports gets the address of a page
// that is never mapped, and is counted in the truth.
func (fs *files) bind(im *image) {
	if im.bound != nil {
		return
	}
	im.bound = append([]byte(nil), im.content...)
	im.private = make(map[uint64]bool)
	stub := uint64(0x7ffd0000)
	for _, imp := range im.file.imports {
		va, ok := fs.resolve(imp.dll, imp.name, imp.ordinal, im.file.pe32, 0)
		if !ok {
			fs.unbound[im.path]++
			va = stub
		}
		if im.file.pe32 {
			putWord(im.bound[imp.slot:], va, 4)
		} else {
			putWord(im.bound[imp.slot:], va, 8)
		}
		im.private[imp.slot>>pageShift] = true
	}
}

func putWord(p []byte, v uint64, n int) {
	for i := range n {
		p[i] = byte(v >> (8 * i))
	}
}

func (fs *files) resolve(dll, name string, ordinal uint64, pe32 bool, depth int) (uint64, bool) {
	key := dll
	if pe32 && !fs.b.x86() {
		key = "32:" + dll
	}
	im := fs.byName[key]
	if im == nil || depth > 8 {
		return 0, false
	}
	e, ok := im.file.exports[name]
	if name == "" {
		e, ok = im.file.ordinals[ordinal]
	}
	if !ok || e.rva == 0 {
		return 0, false
	}
	if e.forward == "" {
		return im.base + e.rva, true
	}
	target, fn, ok := strings.Cut(e.forward, ".")
	if !ok || strings.HasPrefix(fn, "#") {
		return 0, false
	}
	return fs.resolve(strings.ToLower(target)+".dll", fn, 0, pe32, depth+1)
}

// closure lists an image's DLLs and theirs, in load order: ntdll first, then depth
// first as imports name them.
func (fs *files) closure(exe *image, extra ...string) []*image {
	var out []*image
	seen := map[*image]bool{}
	var visit func(im *image)
	add := func(name string) {
		if exe.file.pe32 && !fs.b.x86() {
			name = "32:" + name
		}
		if im := fs.byName[name]; im != nil && !seen[im] {
			seen[im] = true
			out = append(out, im)
			visit(im)
		}
	}
	visit = func(im *image) {
		for _, imp := range im.file.imports {
			add(imp.dll)
		}
	}
	add("ntdll.dll")
	visit(exe)
	for _, name := range extra {
		add(name)
	}
	return out
}
