package ntguest

import (
	"time"
)

// processSpec is what a process of the scenario shall be.
type processSpec struct {
	name     string // as Windows knows it
	file     string // host file it runs, "" for a kernel process
	dir      string // guest directory
	cmd      string // command line; "" for the path in quotes
	parent   string // name of its parent, the latest of that name
	session  int    // -1 for none
	threads  int
	runs     bool // its threads start in user mode; else they wait for ever
	wow64    bool
	critical bool
	exited   bool
	dlls     []string // beside those it imports
	pid      uint64   // 0 for the next free one
}

// process is one process laid out.
type process struct {
	spec     processSpec
	pid      uint64
	ppid     uint64
	path     string // \Device\HarddiskVolume2\...
	eprocess uint64
	peb      uint64
	peb32    uint64
	created  time.Time
	exited   time.Time
	status   uint32
	space    *space
	userRoot uint64 // KVA shadow: physical address of the user root, 0 without
	user     *userSpace
	exe      *image
	modules  []*image
	threads  []*thread
	handles  *handleTable
}

// thread is one thread laid out.
type thread struct {
	tid        uint64
	ethread    uint64
	teb, teb32 uint64
	stackTop   uint64
	stackLimit uint64
	rip, rsp   uint64
	arg0, arg1 uint64
	state      uint32
}

const (
	devicePrefix = `\Device\HarddiskVolume2`
	kernelStack  = 0x6000 // bytes
)

// newProcess makes a process of the scenario and links it into the kernel's lists.
func (b *builder) newProcess(spec processSpec) *process {
	p := &process{spec: spec, created: b.now}
	p.pid = spec.pid
	if p.pid == 0 {
		p.pid = b.nextID()
	}
	for _, q := range b.procs {
		if q.spec.name == spec.parent {
			p.ppid = q.pid
		}
	}
	p.eprocess = b.newObject("Process", "", b.sizeof("_EPROCESS"), infoQuota)
	p.space = b.newSpace(b.newRoot())
	if spec.name == "System" {
		p.space = b.kernel
	}
	ep := b.at("_EPROCESS", p.eprocess)
	ep.set(3, "Pcb.Header.Type") // ProcessObject
	ep.opt(b.sizeof("_KPROCESS")/4&0xff, "Pcb.Header.Size")
	b.listInit(b.kernel, ep.addr("Pcb.Header.WaitListHead"))
	b.listInit(b.kernel, ep.addr("Pcb.ThreadListHead"))
	b.listInit(b.kernel, ep.addr("ThreadListHead"))
	ep.set(p.pid, "UniqueProcessId")
	ep.set(p.ppid, "InheritedFromUniqueProcessId")
	b.kernel.write(ep.addr("ImageFileName"), []byte(clip(spec.name, 14)))
	ep.set(filetime(p.created), "CreateTime")
	ep.set(2, "PriorityClass")
	ep.set(0x103, "ExitStatus") // STATUS_PENDING
	if spec.critical {
		ep.set(1, "BreakOnTermination")
	}
	if spec.session >= 0 {
		ep.set(b.session(spec.session), "Session")
	}
	ep.set(b.newToken(p)|7, "Token")
	if level := b.protection(spec); level != 0 {
		ep.set(level, "Protection.Level")
	}
	p.handles = b.newHandleTable(p.pid, 1)
	ep.set(p.handles.va, "ObjectTable")
	if spec.file != "" {
		p.path = devicePrefix + spec.dir + `\` + spec.name
		p.exe = b.files.open(spec.file, spec.dir+`\`+spec.name, spec.wow64)
		ep.set(p.exe.section, "SectionObject")
		ep.set(p.exe.base, "SectionBaseAddress")
		ep.opt(p.exe.fileObject, "ImageFilePointer")
	}
	b.writeAuditName(ep, p.path)
	if spec.file != "" && !spec.exited {
		b.buildUser(p)
	}
	for i := range max(spec.threads, 1) {
		if !spec.exited {
			b.newThread(p, i)
		}
	}
	ep.set(uint64(len(p.threads)), "ActiveThreads")
	b.writeDTB(p)
	if spec.exited {
		p.exited = p.created.Add(3 * time.Second)
		p.status = 0
		ep.set(filetime(p.exited), "ExitTime")
		ep.set(0, "ExitStatus")
		ep.set(1, "ProcessExiting")
		ep.set(1, "ProcessDelete")
		ep.set(0, "ObjectTable")
	}
	if b.blob != nil {
		return p // a template: the runtime makes its copies known
	}
	b.cid.set(p.pid, p.eprocess, 0)
	b.listAppend(b.kernel, b.sym("PsActiveProcessHead"), ep.addr("ActiveProcessLinks"))
	b.procs = append(b.procs, p)
	b.now = b.now.Add(time.Duration(b.rng.Uint64N(4000)+40) * time.Millisecond)
	return p
}

func clip(s string, n int) string {
	if len(s) > n {
		return s[:n]
	}
	return s
}

// nextID hands out process and thread ids: multiples of four, ascending with gaps,
// as handles of the client id table are.
func (b *builder) nextID() uint64 {
	b.live.lastID += 4 * (1 + b.rng.Uint64N(8))
	if b.live.lastID/4%b.handlesPerPage() == 0 {
		b.live.lastID += 4 // the first entry of a page is never used
	}
	return b.live.lastID
}

// writeDTB sets the page table base, with the process context identifiers that KVA
// shadow uses: 2 in the kernel's tables, 1 in the user's.
func (b *builder) writeDTB(p *process) {
	ep := b.at("_EPROCESS", p.eprocess)
	dtb := p.space.dtb
	if b.opts.KVAShadow && p.spec.file != "" && !p.spec.exited {
		p.userRoot = b.newRoot()
	}
	if b.opts.KVAShadow && !b.x86() { // 32-bit Windows has no such identifiers, and the field neither
		dtb |= 2
		ep.set(p.userRoot|1, "Pcb.UserDirectoryTableBase")
	}
	ep.set(dtb, "Pcb.DirectoryTableBase")
}

// writeAuditName sets SeAuditProcessCreationInfo, where the full image path is kept.
func (b *builder) writeAuditName(ep object, path string) {
	info := b.poolAlloc(2*b.word()+utf16size(path), "SeOn", false)
	n := b.at("_OBJECT_NAME_INFORMATION", info)
	if path != "" {
		n.ustr(info+2*b.word(), path, "Name")
	}
	ep.set(info, "SeAuditProcessCreationInfo.ImageFileName")
}

// session returns the object of a session: its MM_SESSION_SPACE, or since 26100 one whose
// form the symbols leave out, with the id where it was before (volatility3, issue 1385).
func (b *builder) session(id int) uint64 {
	if va := b.sessions[id]; va != 0 {
		return va
	}
	if b.sizeof("_MM_SESSION_SPACE") == 0 {
		va := b.system.alloc(pageSize, pageSize)
		b.kernel.put(va, 1, 4)
		b.kernel.put(va+8, uint64(id), 4)
		b.sessions[id] = va
		return va
	}
	va := b.system.alloc((b.sizeof("_MM_SESSION_SPACE")+pageSize-1)&^(pageSize-1), pageSize)
	o := b.at("_MM_SESSION_SPACE", va)
	o.set(uint64(id), "SessionId")
	o.set(1, "ReferenceCount")
	b.listInit(b.kernel, o.addr("ProcessList"))
	b.sessions[id] = va
	return va
}

// newThread makes thread i of a process.
func (b *builder) newThread(p *process, i int) {
	t := &thread{tid: b.nextID()}
	t.ethread = b.newObject("Thread", "", b.sizeof("_ETHREAD"), 0)
	et, kt := b.at("_ETHREAD", t.ethread), b.at("_KTHREAD", t.ethread)
	kt.set(6, "Header.Type") // ThreadObject
	b.listInit(b.kernel, kt.addr("Header.WaitListHead"))
	if b.blob == nil { // copies of a template get their stacks from the runtime
		t.stackLimit = b.system.reserve(kernelStack+pageSize, pageSize) + pageSize // a guard page below
		for off := uint64(0); off < kernelStack; off += pageSize {
			b.kernel.mapFrame(t.stackLimit+off, b.mem.alloc(), b.system.bits)
		}
		t.stackTop = t.stackLimit + kernelStack
	}
	kt.set(t.stackTop, "InitialStack")
	kt.opt(t.stackTop, "StackBase")
	kt.set(t.stackLimit, "StackLimit")
	kt.set(t.stackTop-0x200, "KernelStack")
	kt.set(p.eprocess, "Process")
	kt.set(p.eprocess, "ApcState.Process")
	kt.set(5, "State") // Waiting
	kt.set(6, "WaitReason")
	et.set(p.pid, "Cid.UniqueProcess")
	et.set(t.tid, "Cid.UniqueThread")
	et.set(filetime(p.created), "CreateTime")
	et.set(0x103, "ExitStatus")
	ep := b.at("_EPROCESS", p.eprocess)
	b.listAppend(b.kernel, ep.addr("Pcb.ThreadListHead"), kt.addr("ThreadListEntry"))
	b.listAppend(b.kernel, ep.addr("ThreadListHead"), et.addr("ThreadListEntry"))
	if b.blob == nil {
		b.cid.set(t.tid, t.ethread, 0)
	}
	t.state = ThreadKernel
	if p.user != nil {
		b.userThread(p, t, i)
		kt.set(t.teb, "Teb")
		et.set(t.rip, "StartAddress")
		et.set(t.arg0, "Win32StartAddress")
	} else {
		et.set(b.image.base+0x1000, "StartAddress")
		et.set(b.image.base+0x1000, "Win32StartAddress")
	}
	p.threads = append(p.threads, t)
}
