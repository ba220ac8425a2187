package ntguest

import (
	"fmt"
	"os"
	"path/filepath"
)

// Machine is a laid-out guest: its memory at one moment and the truth about it.
type Machine struct {
	Build  Build
	Memory uint64 // bytes of RAM
	Truth  *Truth

	mem *memory
	b   *builder
}

// liveState is what the layout keeps beside the memory itself.
type liveState struct {
	lastID   uint64 // process and thread ids
	luid     uint64
	nextDLL  uint64 // DLLs are placed downwards from here
	next32   uint64
	kuserPFN uint64
}

// Lay lays out a guest. The same options and files always give the same memory.
func Lay(opts Options) (m *Machine, err error) {
	assets := opts.Assets
	if assets == "" {
		if assets, err = assetsDir(); err != nil {
			return nil, err
		}
	}
	defer func() {
		if r := recover(); r != nil {
			e, ok := r.(error)
			if !ok {
				panic(r)
			}
			m, err = nil, fmt.Errorf("lay out a guest of build %s: %w", opts.Build, e)
		}
	}()
	b, err := newBuilder(opts)
	if err != nil {
		return nil, err
	}
	rt, err := os.ReadFile(filepath.Join(assets, b.runtimeFile()))
	if err != nil {
		return nil, fmt.Errorf("read the guest's runtime: %w", err)
	}
	if err := b.buildKernel(rt); err != nil {
		return nil, err
	}
	b.buildShared()
	b.buildTypes()
	b.buildCPUs()
	b.buildEntries()
	b.buildShadow()
	b.listInit(b.kernel, b.sym("PsActiveProcessHead"))
	b.live.lastID = 0x40
	b.now = b.boot
	b.cid = b.newHandleTable(0, 64)
	b.buildFiles(assets)
	b.buildDrivers()
	for _, spec := range b.scenario() {
		b.newProcess(spec)
	}
	b.buildHandles()
	if opts.Implants {
		b.implant()
	}
	for _, p := range b.procs {
		if p.user != nil {
			p.user.writeVADs(p.eprocess)
		}
	}
	if opts.Hide != "" {
		if err := b.hide(opts.Hide); err != nil {
			return nil, err
		}
	}
	b.finishTypes()
	b.writeGlobals()
	b.finishShared()
	b.finishSpaces()
	b.writeTruth()
	return &Machine{Build: b.build, Memory: b.mem.size, Truth: &b.truth, mem: b.mem, b: b}, nil
}

// finishSpaces gives every process the kernel half of the System process, with a
// self map of its own, now that all its top-level entries exist.
func (b *builder) finishSpaces() {
	for _, p := range b.procs {
		b.finishShadow(p)
		if p.space == b.kernel {
			continue
		}
		if b.x86() {
			p.space.shareKernel(b.kernel)
			continue
		}
		for i := uint64(256); i < 512; i++ {
			b.mem.put64(p.space.dtb+8*i, b.mem.get64(b.kernel.dtb+8*i))
		}
		b.mem.put64(p.space.dtb+8*b.selfIndex, p.space.dtb|pteValid|pteWrite|pteAccessed|pteDirty|pteNX)
	}
}

// buildHandles opens handles between processes: to processes, threads and files, one
// to the process that has exited.
func (b *builder) buildHandles() {
	header := uint64(b.at("_OBJECT_HEADER", 0).must("Body").Offset)
	for _, p := range b.procs {
		if p.spec.exited {
			continue
		}
		handle := uint64(4)
		open := func(body, access uint64) {
			p.handles.set(handle, body-header, access)
			handle += 4
		}
		if p.exe != nil {
			open(p.exe.fileObject, 0x100020)
		}
		for _, t := range p.threads {
			open(t.ethread, 0x1fffff)
		}
		if p.spec.name == "csrss.exe" || p.spec.name == "services.exe" {
			for _, q := range b.procs {
				if q.ppid == p.pid || q.spec.exited || p.spec.name == "csrss.exe" && q.spec.session == p.spec.session {
					open(q.eprocess, 0x1fffff)
				}
			}
		}
	}
}

// ReadPhys copies guest-physical memory. Where no frame was allocated it reads zeros. It
// fails beyond the end of RAM.
func (m *Machine) ReadPhys(p []byte, addr uint64) error {
	if addr+uint64(len(p)) > m.Memory || addr+uint64(len(p)) < addr {
		return fmt.Errorf("read %d bytes at %#x: the guest has %#x bytes of memory", len(p), addr, m.Memory)
	}
	for len(p) > 0 {
		n := min(pageSize-addr%pageSize, uint64(len(p)))
		if f := m.mem.frames[addr>>pageShift]; f != nil {
			copy(p[:n], f[addr%pageSize:])
		} else {
			clear(p[:n])
		}
		p, addr = p[n:], addr+n
	}
	return nil
}

// Save writes the memory to a new file, as a raw image, sparse where the file system can.
func (m *Machine) Save(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	err = m.writeImage(f)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

func (m *Machine) writeImage(f *os.File) error {
	if err := f.Truncate(int64(m.Memory)); err != nil {
		return fmt.Errorf("write memory image %s: %w", f.Name(), err)
	}
	for _, pfn := range m.mem.used() {
		if _, err := f.WriteAt(m.mem.frame(pfn)[:], int64(pfn<<pageShift)); err != nil {
			return fmt.Errorf("write memory image %s: %w", f.Name(), err)
		}
	}
	return nil
}
