package ntguest

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
)

const (
	bootHeap      = 4 << 20 // bytes for the runtime's tables and its serial ring
	hyperPages    = 64
	stackSlots    = 384
	stackStride   = kernelStack + 2*pageSize // the gap catches overflows
	templateSlots = 96
)

// bootWriter adds to a laid-out machine what the runtime needs beside Windows' own
// structures: nt_boot and its tables, in memory of the runtime's own.
type bootWriter struct {
	b       *builder
	boot    Boot
	regions []BootRegion
	// imagePages is the size of each section's image, by segment.
	imagePages []int
}

// WriteKernel writes the machine as a kernel that QEMU's -kernel option boots. The
// runtime's own tables are added to the machine's memory on the way, so that an
// image of the moment, where one is wanted too, has to be written before.
func (m *Machine) WriteKernel(w io.Writer) (err error) {
	defer func() {
		if r := recover(); r != nil {
			e, ok := r.(error)
			if !ok {
				panic(r)
			}
			err = fmt.Errorf("write kernel of build %s: %w", m.Build.Name, e)
		}
	}()
	if o := m.b.opts; o.Trim > 0 || o.FileCache || o.Implants {
		return fmt.Errorf("write kernel of build %s: trimmed pages, file caches and implants are for images of memory", m.Build.Name)
	}
	assets := m.b.opts.Assets
	if assets == "" {
		if assets, err = assetsDir(); err != nil {
			return err
		}
	}
	if m.b.pae() && m.b.mem.size > high {
		return fmt.Errorf("write kernel of build %s: what lies above %d GiB is for images of memory", m.Build.Name, high>>30)
	}
	stub, err := os.ReadFile(filepath.Join(assets, m.b.stubFile()))
	if err != nil {
		return fmt.Errorf("read the guest's boot stub: %w", err)
	}
	bw := &bootWriter{b: m.b}
	at := bw.write()
	params := StubParams{SystemDTB: m.b.kernel.dtb, RTEntry: m.b.image.runtime + uint64(m.b.image.rt.Entry), NtBoot: at}
	if m.b.opts.LA57 || m.b.pae() {
		params.Wide = 1
	}
	for i, c := range m.b.cpus {
		params.Stacks[i] = c.bootStack
	}
	run, entry, err := LoadStub(stub, params)
	if err != nil {
		return err
	}
	return WriteKernelELF(w, append(m.runs(), run), entry)
}

// runs are the machine's frames as physical memory, neighbours joined.
func (m *Machine) runs() []PhysRun {
	var out []PhysRun
	for _, pfn := range m.mem.used() {
		addr := pfn << pageShift
		if n := len(out); n > 0 && out[n-1].Addr+uint64(len(out[n-1].Data)) == addr {
			out[n-1].Data = append(out[n-1].Data, m.mem.frame(pfn)[:]...)
			continue
		}
		out = append(out, PhysRun{Addr: addr, Data: append([]byte(nil), m.mem.frame(pfn)[:]...)})
	}
	return out
}

// put places v in runtime memory and returns where.
func (w *bootWriter) put(v any) uint64 {
	var buf bytes.Buffer
	if err := binary.Write(&buf, binary.LittleEndian, v); err != nil {
		panic(fmt.Errorf("encode %T: %w", v, err))
	}
	if buf.Len() == 0 {
		return 0
	}
	va := w.b.runtime.alloc(uint64(buf.Len()), 16)
	w.b.kernel.write(va, buf.Bytes())
	return va
}

func table[T any](w *bootWriter, items []T) BootTable {
	return BootTable{VA: w.put(items), Count: uint64(len(items))}
}

// text places a JSON object without its braces.
func (w *bootWriter) text(v any) (va, n uint64) {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	raw = raw[1 : len(raw)-1]
	return w.put(raw), uint64(len(raw))
}

// write makes nt_boot and everything it refers to, and returns its address.
func (w *bootWriter) write() uint64 {
	b := w.b
	w.boot = Boot{Magic: BootMagic, Version: BootVersion, Size: uint32(binary.Size(Boot{})),
		KernelBase: b.image.base, SystemDTB: b.kernel.dtb,
		SelfIndex: uint32(b.selfIndex), NCPU: uint32(len(b.cpus)), UserEnd: b.user,
		TimerVector: timerVector, IPIVector: ipiVector,
		Kuser: b.kuser(), ObCookie: b.cookie}
	bt := &w.boot
	w.systemCalls()
	if bt.InvalidPTEMask = b.invalidPTEMask(); bt.InvalidPTEMask != 0 {
		bt.SwizzleBit = pteSwizzle
	}
	if b.packedHandles() {
		bt.Flags |= BootCIDPacked
		if !b.x86() && b.handleShift() == 7 {
			bt.Flags |= BootCID57
		}
	}
	if _, ok := b.profile.Symbol("ObHeaderCookie"); ok {
		bt.Flags |= BootObCookie
	}
	if b.opts.LA57 {
		bt.Flags |= BootLA57
	}
	if b.opts.KVAShadow {
		bt.Flags |= BootKVAShadow
		bt.ShadowPML4 = b.shadow.dtb
	}
	bt.Off = w.offsets()
	w.cpus()
	bt.Heap, bt.HeapSize = b.runtime.pages(bootHeap/pageSize), bootHeap
	bt.Hyper = b.runtime.reserve(hyperPages*pageSize, hyperPages*pageSize)
	bt.Stacks = BootArena{VA: b.system.reserve(stackSlots*stackStride+pageSize, pageSize) + pageSize,
		Stride: stackStride, Size: kernelStack, Count: stackSlots}
	bt.CIDPages = table(w, b.cid.pages)
	specs := b.templates()
	for _, spec := range specs {
		b.files.open(spec.file, spec.dir+`\`+spec.name, spec.wow64)
	}
	w.segments()
	w.processes()
	w.templates(specs)
	b.finishTypes()
	t := liveMachine{Build: b.truth.Build, Version: b.truth.Version, Kernel: b.truth.Kernel, Drivers: b.truth.Drivers, Hidden: b.truth.Hidden}
	bt.Truth, bt.TruthLen = w.text(t)
	at := b.runtime.alloc(uint64(bt.Size), pageSize)
	free := w.freeRanges() // nothing is allocated after this
	bt.Free.Count = uint64(len(free))
	bt.Free.VA = b.runtime.alloc(uint64(16*len(free))+8*pageSize, 16)
	free = w.freeRanges()
	if uint64(len(free)) > bt.Free.Count {
		bt.Free.Count = min(uint64(len(free)), bt.Free.Count+8*pageSize/16)
		free = free[:bt.Free.Count]
	}
	bt.Free.Count = uint64(len(free))
	w.place(bt.Free.VA, free)
	w.place(at, bt)
	b.finishSpaces()
	return at
}

// systemCalls says where system calls lead to.
func (w *bootWriter) systemCalls() {
	b, bt := w.b, &w.boot
	switch {
	case b.x86():
		bt.Syscall64 = b.sym("KiFastCallEntry")
		if b.opts.KVAShadow {
			bt.Syscall64 = b.image.runtime + uint64(b.image.rt.ShadowSyscall64)
		}
		ntdll := b.files.byName["ntdll.dll"]
		bt.Syscall64Shadow = ntdll.base + ntdll.file.exports["KiFastSystemCallRet"].rva
	case b.opts.KVAShadow:
		bt.Syscall64, bt.Syscall32 = b.sym("KiSystemCall64"), b.sym("KiSystemCall32Shadow")
		bt.Syscall64Shadow = b.sym("KiSystemCall64Shadow")
	default:
		bt.Syscall64, bt.Syscall32 = b.sym("KiSystemCall64"), b.sym("KiSystemCall32")
	}
}

// templates lays out the programs to start later and sets kernel memory aside for
// the processes made of them.
func (w *bootWriter) templates(specs []processSpec) {
	var all []BootTemplate
	var size uint64
	for _, spec := range specs {
		t := w.template(spec)
		size = max(size, t.BlobSize)
		all = append(all, t)
	}
	w.boot.Templates = table(w, all)
	w.boot.FirstPID = (w.b.live.lastID + 0x200) &^ 0xff
	w.boot.Slots = BootArena{VA: w.b.nonPaged.reserve(size*templateSlots, pageSize), Stride: size, Size: size, Count: templateSlots}
}

// place writes v at an address that has memory already.
func (w *bootWriter) place(va uint64, v any) {
	var buf bytes.Buffer
	if err := binary.Write(&buf, binary.LittleEndian, v); err != nil {
		panic(fmt.Errorf("encode %T: %w", v, err))
	}
	w.b.kernel.write(va, buf.Bytes())
}

// freeRanges is RAM that nothing uses: above what firmware and the boot stub need,
// below what firmware keeps at the end.
func (w *bootWriter) freeRanges() []BootRange {
	end := (w.b.mem.ramBelow4G() - topReserved) >> pageShift
	var out []BootRange
	next := uint64(firstFreeFrame)
	for _, pfn := range append(w.b.mem.used(), end) {
		if pfn < next {
			continue
		}
		if pfn > next {
			out = append(out, BootRange{Start: next, End: min(pfn, end)})
		}
		next = pfn + 1
	}
	return out
}

// progress is the address of the counter that a program exports, 0 without one.
func (p *process) progress() uint64 {
	if p.exe == nil {
		return 0
	}
	e, ok := p.exe.file.exports["progress"]
	if !ok {
		return 0
	}
	return p.exe.base + e.rva
}

// segments lists the sections with the frames that hold their files: those of the
// resident pages themselves, which nobody writes to, and more for the others.
func (w *bootWriter) segments() {
	b := w.b
	w.imagePages = make([]int, len(b.files.segments))
	segs := make([]BootSegment, len(b.files.segments))
	images := make([]*image, 0, len(b.files.images))
	for _, im := range b.files.images {
		images = append(images, im)
	}
	sort.Slice(images, func(i, j int) bool { return images[i].segment < images[j].segment })
	for _, im := range images {
		backing := make([]uint32, len(im.content)/pageSize)
		file := make([]uint64, len(backing))
		w.imagePages[im.segment] = len(backing)
		for i := range backing {
			var pfn uint64
			if i < len(im.frames) {
				pfn = im.frames[i]
			}
			if pfn == 0 {
				pfn = b.mem.alloc()
				copy(b.mem.frame(pfn)[:], im.content[i*pageSize:])
			}
			backing[i], file[i] = uint32(pfn), b.filePTE(im, uint64(i))
		}
		segs[im.segment] = BootSegment{Proto: im.proto, Backing: w.put(backing), Count: uint64(len(backing)), File: w.put(file)}
	}
	w.boot.Segments = table(w, segs)
}

// userRegions returns a process's regions sorted, with their frames where fixed.
func (w *bootWriter) userRegions(u *userSpace) []BootRegion {
	out := append([]BootRegion(nil), u.regions...)
	sort.Slice(out, func(i, j int) bool { return out[i].Start < out[j].Start })
	for i := range out {
		if out[i].Kind == RegionShared {
			out[i].Backing = w.put([]uint32{uint32(w.b.live.kuserPFN)})
		}
		if i > 0 && out[i].Start < out[i-1].End {
			panic(fmt.Errorf("user regions overlap at %#x", out[i].Start))
		}
	}
	return out
}

// processes lists the processes and threads of the moment.
func (w *bootWriter) processes() {
	b := w.b
	var procs []BootProc
	var threads []BootThread
	for i, p := range b.procs {
		bp := BootProc{EPROCESS: p.eprocess, DTB: p.space.dtb, UserDTB: p.userRoot,
			PEB: p.peb, PEB32: p.peb32, CreateTime: filetime(p.created), ExitTime: filetime(p.exited),
			ExitStatus: p.status, PID: uint32(p.pid), PPID: uint32(p.ppid), Session: uint32(int32(p.spec.session)),
			FirstRegion: uint32(len(w.regions))}
		if !p.spec.exited {
			bp.ExitStatus = 0x103 // STATUS_PENDING
		}
		copy(bp.Name[:15], p.spec.name)
		switch {
		case p.spec.exited:
			bp.Flags |= ProcExited
		case p.user == nil:
			bp.Flags |= ProcKernel
		}
		if p.spec.wow64 && !p.spec.exited {
			bp.Flags |= ProcWow64
		}
		if p.spec.critical {
			bp.Flags |= ProcCritical
		}
		bp.Protection, bp.Progress, bp.Account = uint32(b.protection(p.spec)), p.progress(), lastRID(b.account(p.spec))
		if p.user != nil {
			w.regions = append(w.regions, w.userRegions(p.user)...)
		}
		bp.Regions = uint32(len(w.regions)) - bp.FirstRegion
		va, n := w.text(b.liveTruth(p))
		bp.Truth, bp.TruthLen = va, uint32(n)
		procs = append(procs, bp)
		for _, t := range p.threads {
			threads = append(threads, BootThread{ETHREAD: t.ethread, TEB: t.teb, TEB32: t.teb32, StackTop: t.stackTop, StackLimit: t.stackLimit,
				RIP: t.rip, RSP: t.rsp, Arg0: t.arg0, Arg1: t.arg1, TID: uint32(t.tid), Proc: uint32(i), State: t.state})
		}
	}
	for i, c := range b.cpus {
		threads = append(threads, BootThread{ETHREAD: c.idle, StackTop: c.bootStack, StackLimit: c.bootStack - kernelStack,
			Arg0: uint64(i), State: ThreadIdle})
	}
	w.boot.Procs = table(w, procs)
	w.boot.Threads = table(w, threads)
	w.boot.Regions = table(w, w.regions)
}

// liveMachine and liveProcess are the members of the truth that stay as they are
// while the guest runs; the runtime adds the others.
type liveMachine struct {
	Build   string        `json:"build"`
	Version string        `json:"version"`
	Kernel  TruthKernel   `json:"kernel"`
	Drivers []TruthModule `json:"drivers"`
	Hidden  []uint64      `json:"hidden"`
}

type liveProcess struct {
	Name     string        `json:"name"`
	Path     string        `json:"path"`
	Command  string        `json:"command"`
	Session  int           `json:"session"`
	Wow64    bool          `json:"wow64"`
	Critical bool          `json:"critical"`
	SID      string        `json:"sid"`
	Modules  []TruthModule `json:"modules"`
}

func (b *builder) liveTruth(p *process) liveProcess {
	t := b.processTruth(p)
	return liveProcess{Name: t.Name, Path: t.Path, Command: t.Command, Session: t.Session, Wow64: t.Wow64, Critical: t.Critical, SID: t.SID,
		Modules: withoutAbsent(t.Modules)}
}
