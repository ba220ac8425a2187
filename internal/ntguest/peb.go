package ntguest

import (
	"fmt"
)

// Fixed places of a process's private user memory. Windows chooses them at random;
// the layout varies them within a 2 MiB area by process.
const (
	pebArea   = 0x00200000 // PEB and TEBs
	heapArea  = 0x00600000 // the first heap: parameters, loader data
	heapSize  = 0x40000
	stackArea = 0x00a00000 // thread stacks, one 1 MiB slot each
	allocArea = 0x10000000 // NtAllocateVirtualMemory
	allocSize = 0x10000000
	stackSize = 0x100000
	kuserUser = 0x7ffe0000
	stackUsed = 4 * pageSize
)

// buildUser lays out the user half of a process: its images, PEB, loader lists,
// parameters and the shared user data page.
func (b *builder) buildUser(p *process) {
	u := &userSpace{b: b, s: p.space, own: make(map[uint64]bool)}
	p.user = u
	p.modules = append([]*image{p.exe}, b.files.closure(p.exe, p.spec.dlls...)...)
	var native []*image // of a wow64 process: the 64-bit side
	if p.spec.wow64 {
		for _, name := range []string{"ntdll.dll", "wow64.dll", "wow64cpu.dll"} {
			if im := b.files.byName[name]; im != nil {
				native = append(native, im)
			}
		}
	}
	for _, im := range append(append([]*image(nil), p.modules...), native...) {
		u.mapImage(im)
	}
	u.s.mapFrame(kuserUser, b.live.kuserPFN, pteUser|pteNX)
	u.vad(vadSpec{start: kuserUser, end: kuserUser + pageSize, prot: mmReadOnly, private: true, commit: 1})
	u.region(kuserUser, kuserUser+pageSize, RegionShared, mmReadOnly)

	slide := b.rng.Uint64N(16) << pageShift
	p.peb = pebArea + slide
	u.private(p.peb, p.peb+pageSize)
	if p.spec.wow64 {
		p.peb32 = p.peb + pageSize
		u.private(p.peb32, p.peb32+pageSize)
	}
	u.vad(vadSpec{start: pebArea, end: pebArea + 0x200000, prot: mmReadWrite, private: true, commit: 2 + 2*uint64(p.spec.threads)})
	u.region(pebArea, pebArea+0x200000, RegionZero, mmReadWrite)

	heap := heapArea + b.rng.Uint64N(16)<<16
	u.private(heap, heap+heapSize)
	u.vad(vadSpec{start: heap, end: heap + 0x100000, prot: mmReadWrite, private: true, commit: heapSize / pageSize})
	u.region(heap, heap+0x100000, RegionZero, mmReadWrite)
	u.heap = userArena{u: u, next: heap + 0x100, end: heap + heapSize}

	u.vad(vadSpec{start: allocArea, end: allocArea + allocSize, prot: mmReadWrite, private: true})
	u.region(allocArea, allocArea+allocSize, RegionAlloc, mmReadWrite)

	b.writePEB(p, heap)
	if p.spec.wow64 {
		b.writeLdr(p, append([]*image{p.exe}, native...))
		b.writePEB32(p, heap)
		ep := b.at("_EPROCESS", p.eprocess)
		if _, ok := ep.field("WoW64Process"); ok {
			wow := b.poolAlloc(b.sizeof("_EWOW64PROCESS"), "Wow6", false)
			w := b.at("_EWOW64PROCESS", wow)
			w.set(p.peb32, "Peb")
			w.opt(0x14c, "Machine")
			ep.set(wow, "WoW64Process")
		} else {
			ep.set(p.peb32, "Wow64Process") // until Windows 8 the PEB itself
		}
	} else {
		b.writeLdr(p, p.modules)
	}
	b.at("_EPROCESS", p.eprocess).set(p.peb, "Peb")
}

// view is at of a process's user memory.
func (u *userSpace) view(typ string, va uint64) object {
	return object{b: u.b, s: u.s, va: va, typ: typ}
}

// dosPath is the path as user mode knows it.
func (p *process) dosPath() string { return `C:` + p.spec.dir + `\` + p.spec.name }

func (p *process) commandLine() string {
	if p.spec.cmd != "" {
		return p.spec.cmd
	}
	return `"` + p.dosPath() + `"`
}

func (b *builder) writePEB(p *process, heap uint64) {
	u := p.user
	peb := u.view("_PEB", p.peb)
	peb.set(p.exe.base, "ImageBaseAddress")
	peb.set(heap, "ProcessHeap")
	peb.set(1, "NumberOfHeaps")
	peb.set(uint64(len(b.cpus)), "NumberOfProcessors")
	peb.set(uint64(b.build.Major), "OSMajorVersion")
	peb.set(uint64(b.build.Minor), "OSMinorVersion")
	peb.set(uint64(b.build.Number), "OSBuildNumber")
	peb.set(2, "OSPlatformId")
	peb.set(uint64(max(p.spec.session, 0)), "SessionId")
	params := u.heap.alloc(b.sizeof("_RTL_USER_PROCESS_PARAMETERS"))
	peb.set(params, "ProcessParameters")
	o := u.view("_RTL_USER_PROCESS_PARAMETERS", params)
	o.set(b.sizeof("_RTL_USER_PROCESS_PARAMETERS"), "MaximumLength")
	o.set(b.sizeof("_RTL_USER_PROCESS_PARAMETERS"), "Length")
	o.set(1, "Flags") // normalised
	u.ustr(o.addr("CurrentDirectory.DosPath"), `C:\Windows\system32\`)
	u.ustr(o.addr("ImagePathName"), p.dosPath())
	u.ustr(o.addr("CommandLine"), p.commandLine())
	u.ustr(o.addr("WindowTitle"), p.dosPath())
	env := utf16le("COMPUTERNAME=NTGUEST\x00PATH=C:\\Windows\\system32;C:\\Windows\x00SystemRoot=C:\\Windows\x00\x00")
	at := u.heap.alloc(uint64(len(env)))
	u.s.write(at, env)
	o.set(at, "Environment")
	o.opt(uint64(len(env)), "EnvironmentSize")
}

// writeLdr makes PEB_LDR_DATA and its three lists over modules, the program first.
func (b *builder) writeLdr(p *process, modules []*image) {
	u := p.user
	ldr := u.heap.alloc(b.sizeof("_PEB_LDR_DATA"))
	l := u.view("_PEB_LDR_DATA", ldr)
	l.set(b.sizeof("_PEB_LDR_DATA"), "Length")
	l.set(1, "Initialized")
	lists := []string{"InLoadOrderModuleList", "InMemoryOrderModuleList", "InInitializationOrderModuleList"}
	for _, list := range lists {
		b.listInit(u.s, l.addr(list))
	}
	links := []string{"InLoadOrderLinks", "InMemoryOrderLinks", "InInitializationOrderLinks"}
	for i, im := range modules {
		at := u.heap.alloc(b.sizeof("_LDR_DATA_TABLE_ENTRY"))
		e := u.view("_LDR_DATA_TABLE_ENTRY", at)
		e.set(im.base, "DllBase")
		if im.file.entry != 0 {
			e.set(im.base+im.file.entry, "EntryPoint")
		}
		e.set(uint64(len(im.content)), "SizeOfImage")
		u.ustr(e.addr("FullDllName"), `C:`+im.path)
		u.ustr(e.addr("BaseDllName"), baseName(im.path))
		e.set(0x22004|uint64(boolBit(i > 0))<<19, "Flags")
		e.opt(0xffff, "LoadCount")
		e.opt(0xffff, "ObsoleteLoadCount")
		e.set(uint64(im.file.stamp), "TimeDateStamp")
		e.opt(im.file.base, "OriginalBase")
		e.opt(filetime(p.created), "LoadTime")
		b.listInit(u.s, e.addr("HashLinks"))
		for n, list := range lists {
			if n == 2 && i == 0 {
				continue // the program is not initialised like a DLL
			}
			b.listAppend(u.s, l.addr(list), e.addr(links[n]))
		}
	}
	u.view("_PEB", p.peb).set(ldr, "Ldr")
}

func boolBit(v bool) int {
	if v {
		return 1
	}
	return 0
}

// The 32-bit forms of the loader's structures, which kernel symbols do not hold
// (ntdll of Windows 7 to 10, WOW64; stable since NT 4).
const (
	ldr32InLoad, ldr32InMemory, ldr32InInit                       = 0x0c, 0x14, 0x1c
	ldr32Size                                                     = 0x30
	entry32Base, entry32Entry, entry32Size, entry32Full           = 0x18, 0x1c, 0x20, 0x24
	entry32BaseName, entry32Flags, entry32LoadCount, entry32Stamp = 0x2c, 0x34, 0x38, 0x44
	entry32Bytes                                                  = 0xa8
	params32Flags, params32Dir, params32Image, params32Command    = 0x08, 0x24, 0x38, 0x40
	params32Env, params32Bytes                                    = 0x48, 0x2a0
	teb32StackBase, teb32StackLimit, teb32Self                    = 0x04, 0x08, 0x18
	teb32ClientID, teb32PEB, teb32Wow32Reserved                   = 0x20, 0x30, 0xc0
)

// writePEB32 makes the 32-bit PEB, parameters and loader lists of a wow64 process.
func (b *builder) writePEB32(p *process, heap uint64) {
	u := p.user
	peb := u.view("_PEB32", p.peb32)
	peb.set(p.exe.base, "ImageBaseAddress")
	peb.set(heap, "ProcessHeap")
	peb.set(uint64(len(b.cpus)), "NumberOfProcessors")
	peb.set(uint64(b.build.Major), "OSMajorVersion")
	peb.set(uint64(b.build.Minor), "OSMinorVersion")
	peb.set(uint64(b.build.Number), "OSBuildNumber")
	peb.set(uint64(max(p.spec.session, 0)), "SessionId")
	params := u.heap.alloc(params32Bytes)
	peb.set(params, "ProcessParameters")
	u.s.put(params, params32Bytes, 4)
	u.s.put(params+4, params32Bytes, 4)
	u.s.put(params+params32Flags, 1, 4)
	u.ustr32(params+params32Dir, `C:\Windows\system32\`)
	u.ustr32(params+params32Image, p.dosPath())
	u.ustr32(params+params32Command, p.commandLine())
	ldr := u.heap.alloc(ldr32Size)
	peb.set(ldr, "Ldr")
	u.s.put(ldr, ldr32Size, 4)
	u.s.put(ldr+4, 1, 1)
	lists := []uint64{ldr + ldr32InLoad, ldr + ldr32InMemory, ldr + ldr32InInit}
	for _, head := range lists {
		u.s.put(head, head, 4)
		u.s.put(head+4, head, 4)
	}
	for i, im := range p.modules {
		e := u.heap.alloc(entry32Bytes)
		u.s.put(e+entry32Base, im.base, 4)
		if im.file.entry != 0 {
			u.s.put(e+entry32Entry, im.base+im.file.entry, 4)
		}
		u.s.put(e+entry32Size, uint64(len(im.content)), 4)
		u.ustr32(e+entry32Full, `C:`+im.path)
		u.ustr32(e+entry32BaseName, baseName(im.path))
		u.s.put(e+entry32Flags, 0x22004, 4)
		u.s.put(e+entry32LoadCount, 0xffff, 2)
		u.s.put(e+entry32Stamp, uint64(im.file.stamp), 4)
		for n, head := range lists {
			if n == 2 && i == 0 {
				continue
			}
			u.append32(head, e+8*uint64(n))
		}
	}
}

// append32 is listAppend for 32-bit LIST_ENTRYs.
func (u *userSpace) append32(head, entry uint64) {
	last := u.s.get(head+4, 4)
	u.s.put(entry, head, 4)
	u.s.put(entry+4, last, 4)
	u.s.put(last, entry, 4)
	u.s.put(head+4, entry, 4)
}

// userThread gives a thread its stack, its TEB and the place where it starts.
func (b *builder) userThread(p *process, t *thread, i int) {
	u := p.user
	limit := stackArea + uint64(i)*2*stackSize
	top := limit + stackSize
	u.private(top-stackUsed, top)
	u.vad(vadSpec{start: limit, end: top, prot: mmReadWrite, private: true, commit: stackUsed/pageSize + 1})
	u.region(limit, top, RegionZero, mmReadWrite)
	t.teb = pebArea + 0x20000 + uint64(i)*4*pageSize
	u.private(t.teb, t.teb+2*pageSize)
	teb := u.view("_TEB", t.teb)
	teb.set(top, "NtTib.StackBase")
	teb.set(top-stackUsed, "NtTib.StackLimit")
	teb.set(t.teb, "NtTib.Self")
	teb.set(p.pid, "ClientId.UniqueProcess")
	teb.set(t.tid, "ClientId.UniqueThread")
	teb.set(p.peb, "ProcessEnvironmentBlock")
	t.state = ThreadBlocked
	if p.spec.runs {
		t.state = ThreadReady
	}
	ntdll := b.files.byName["ntdll.dll"]
	start, ok := ntdll.file.exports["RtlUserThreadStart"]
	if !ok && b.x86() {
		start, ok = ntdll.file.exports["_RtlUserThreadStart"]
	}
	if !ok {
		panic(fmt.Errorf("the guest's ntdll.dll does not export RtlUserThreadStart"))
	}
	t.rip = ntdll.base + start.rva
	t.rsp = top - 0x108
	t.arg0, t.arg1 = p.exe.base+p.exe.file.entry, p.peb
	if b.x86() { // arguments are on the stack, behind where to return to
		u.s.put(t.rsp+4, t.arg0, 4)
		u.s.put(t.rsp+8, t.arg1, 4)
	}
	if !p.spec.wow64 {
		return
	}
	// A wow64 thread has a 32-bit stack and TEB too; the 64-bit one leads to them.
	t.teb32 = t.teb + 2*pageSize
	u.private(t.teb32, t.teb32+pageSize)
	teb.set(t.teb32, "NtTib.ExceptionList")
	limit32 := limit + stackSize + 0x10000
	top32 := limit32 + stackSize - 0x20000
	u.private(top32-stackUsed, top32)
	u.vad(vadSpec{start: limit32, end: top32, prot: mmReadWrite, private: true, commit: stackUsed / pageSize})
	u.region(limit32, top32, RegionZero, mmReadWrite)
	u.s.put(t.teb32+teb32StackBase, top32, 4)
	u.s.put(t.teb32+teb32StackLimit, top32-stackUsed, 4)
	u.s.put(t.teb32+teb32Self, t.teb32, 4)
	u.s.put(t.teb32+teb32ClientID, p.pid, 4)
	u.s.put(t.teb32+teb32ClientID+4, t.tid, 4)
	u.s.put(t.teb32+teb32PEB, p.peb32, 4)
	cpu := b.files.byName["wow64cpu.dll"]
	ntdll32 := b.files.byName["32:ntdll.dll"]
	if cpu == nil || ntdll32 == nil {
		panic(fmt.Errorf("the guest lacks the DLLs of a wow64 process"))
	}
	enter, ok := cpu.file.exports["CpuStartThread"]
	start32, ok32 := ntdll32.file.exports["_RtlUserThreadStart"]
	if !ok32 {
		start32, ok32 = ntdll32.file.exports["RtlUserThreadStart"]
	}
	if !ok || !ok32 {
		panic(fmt.Errorf("the guest's wow64cpu.dll or 32-bit ntdll.dll lacks its thread start"))
	}
	call, ok := cpu.file.exports["KiFastSystemCall"]
	if !ok {
		panic(fmt.Errorf("the guest's wow64cpu.dll does not export KiFastSystemCall"))
	}
	u.s.put(t.teb32+teb32Wow32Reserved, cpu.base+call.rva, 4)
	esp := top32 - 0x100
	u.s.put(esp+4, p.exe.base+p.exe.file.entry, 4)
	u.s.put(esp+8, p.peb32, 4)
	t.rip = cpu.base + enter.rva
	t.arg0, t.arg1 = ntdll32.base+start32.rva, esp
	t.state |= ThreadWow64
}
