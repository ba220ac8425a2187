package ntguest

import (
	"fmt"
	"maps"
)

// templates are the programs that can be started while the guest runs. The first
// three are what spawner.exe starts; the others are for tests to start, one of each
// way to spend one's time.
func (b *builder) templates() []processSpec {
	app := func(name, file string, threads int) processSpec {
		return processSpec{name: name, file: file, dir: `\Program Files\Test`, parent: "explorer.exe", session: 1, threads: threads, runs: true}
	}
	wow := func(name, file string, threads int) processSpec {
		s := app(name, file, threads)
		s.dir, s.wow64 = `\Program Files (x86)\Test`, true
		return s
	}
	defender := processSpec{name: "MsMpEng.exe", file: "MsMpEng.exe", dir: `\ProgramData\Microsoft\Windows Defender\Platform`,
		parent: "services.exe", session: 0, threads: 1, runs: true}
	sentry := processSpec{name: "svchost.exe", file: "svchost.exe", dir: sys32, cmd: `C:\Windows\system32\svchost.exe -k netsvcs -p -s BITS`,
		parent: "services.exe", session: 0, threads: 1, runs: true}
	critical := app("critical.exe", "burn.exe", 1)
	critical.critical = true
	malware := app("malware.exe", "malware.exe", 1)
	malware.dir = `\Users\user\AppData\Local\Temp`
	all := []processSpec{
		app("worker.exe", "worker.exe", 1), app("notify.exe", "notify.exe", 1), app("update.exe", "update.exe", 1),
		app("burn.exe", "burn.exe", 1), app("spin.exe", "spin.exe", 1), app("sleeper.exe", "sleeper.exe", 1),
		app("faulter.exe", "faulter.exe", 1), app("thrash.exe", "thrash.exe", 1), app("threads.exe", "threads.exe", 5), app("service.exe", "service.exe", 2),
		malware, app("syscheck.exe", "syscheck.exe", 1),
		wow("wowworker.exe", "worker.exe", 1), wow("wowburn.exe", "burn.exe", 1), wow("wowsleeper.exe", "sleeper.exe", 1),
		wow("wowfaulter.exe", "faulter.exe", 1), wow("wowthrash.exe", "thrash.exe", 1), wow("wowservice.exe", "service.exe", 2),
		wow("wowthreads.exe", "threads.exe", 5), sentry, critical, defender,
	}
	if b.x86() {
		return scenario32(all)
	}
	return all
}

// template lays out a process that does not run yet: its kernel structures in a
// blob of the runtime's memory, its user pages as frames to copy from.
func (w *bootWriter) template(spec processSpec) BootTemplate {
	b := w.b
	b.files.open(spec.file, spec.dir+`\`+spec.name, spec.wow64) // sections are no part of the blob
	types := maps.Clone(b.types)
	base := (b.runtime.next + pageSize - 1) &^ (pageSize - 1)
	bl := &blob{arena: arena{s: b.kernel, start: base, next: base, bits: b.runtime.bits}, pointers: make(map[uint64]bool)}
	b.blob = bl
	p := b.newProcess(spec)
	p.user.writeVADs(p.eprocess)
	header := uint64(b.at("_OBJECT_HEADER", 0).must("Body").Offset)
	p.handles.set(4, p.exe.fileObject-header, 0x100020)
	for i, t := range p.threads {
		p.handles.set(uint64(8+4*i), t.ethread-header, 0x1fffff)
	}
	w.processFixups(p)
	fixups := bl.finish()
	size := (bl.arena.next - base + pageSize - 1) &^ (pageSize - 1)
	b.blob = nil
	b.types = types
	b.runtime.next = base + size

	out := BootTemplate{Blob: base, BlobSize: size, BlobBase: base, EPROCESS: p.eprocess - base, PEB: p.peb, PEB32: p.peb32,
		Session: uint32(int32(spec.session)), Fixups: table(w, fixups), UserFixups: table(w, w.userFixups(p))}
	if copy(out.Name[:len(out.Name)-1], spec.name) < len(spec.name) {
		panic(fmt.Errorf("the name of template %s is too long", spec.name))
	}
	if spec.wow64 {
		out.Flags |= ProcWow64
	}
	if spec.critical {
		out.Flags |= ProcCritical
	}
	out.Protection, out.Progress, out.Account = uint32(b.protection(spec)), p.progress(), lastRID(b.account(spec))
	var threads []BootTemplateThread
	for _, t := range p.threads {
		threads = append(threads, BootTemplateThread{ETHREAD: t.ethread - base, TEB: t.teb, TEB32: t.teb32,
			RIP: t.rip, RSP: t.rsp, Arg0: t.arg0, Arg1: t.arg1, Flags: t.state})
	}
	out.Threads = table(w, threads)
	regions, touch := w.templateRegions(p)
	out.Regions, out.Touch = table(w, regions), table(w, touch)
	va, n := w.text(b.liveTruth(p))
	out.Truth, out.TruthLen = va, uint32(n)
	return out
}

// processFixups notes what differs from copy to copy of a template, and what makes
// a copy known to the system.
func (w *bootWriter) processFixups(p *process) {
	b := w.b
	fix := func(kind uint32, at uint64, arg int, value uint64) {
		b.fix(BootFixup{At: at, Kind: kind, Arg: uint32(arg), Value: value})
	}
	ep := b.at("_EPROCESS", p.eprocess)
	fix(FixPID, ep.addr("UniqueProcessId"), 0, 0)
	fix(FixPPID, ep.addr("InheritedFromUniqueProcessId"), 0, 0)
	fix(FixNow, ep.addr("CreateTime"), 0, 0)
	fix(FixPID32, b.at("_HANDLE_TABLE", p.handles.va).addr("UniqueProcessId"), 0, 0)
	flags := uint64(0)
	if b.opts.KVAShadow && !b.x86() {
		flags = 2
		fix(FixUserDTB, ep.addr("Pcb.UserDirectoryTableBase"), 0, 1)
	}
	fix(FixDTB, ep.addr("Pcb.DirectoryTableBase"), 0, flags)
	for i, t := range p.threads {
		et, kt := b.at("_ETHREAD", t.ethread), b.at("_KTHREAD", t.ethread)
		fix(FixPID, et.addr("Cid.UniqueProcess"), 0, 0)
		fix(FixTID, et.addr("Cid.UniqueThread"), i, 0)
		fix(FixNow, et.addr("CreateTime"), 0, 0)
		fix(FixStackTop, kt.addr("InitialStack"), i, 0)
		if _, ok := kt.field("StackBase"); ok {
			fix(FixStackTop, kt.addr("StackBase"), i, 0)
		}
		fix(FixStackLimit, kt.addr("StackLimit"), i, 0)
		fix(FixCIDThread, t.ethread, i, 0)
	}
	count := func(typ string, n int) {
		at := b.at("_OBJECT_TYPE", b.types[typ].va).addr("TotalNumberOfObjects")
		for range n {
			fix(FixInc32, p.eprocess, 0, at)
		}
	}
	count("Process", 1)
	count("Thread", len(p.threads))
	count("Token", 1)
	fix(FixCIDProc, p.eprocess, 0, 0)
	fix(FixLink, ep.addr("ActiveProcessLinks"), 0, b.sym("PsActiveProcessHead"))
}

// userFixups are the ids in a copy's TEBs.
func (w *bootWriter) userFixups(p *process) []BootFixup {
	var out []BootFixup
	for i, t := range p.threads {
		teb := p.user.view("_TEB", t.teb)
		out = append(out, BootFixup{At: teb.addr("ClientId.UniqueProcess"), Kind: FixPID},
			BootFixup{At: teb.addr("ClientId.UniqueThread"), Kind: FixTID, Arg: uint32(i)})
		if t.teb32 != 0 {
			out = append(out, BootFixup{At: t.teb32 + teb32ClientID, Kind: FixPID32},
				BootFixup{At: t.teb32 + teb32ClientID + 4, Kind: FixTID32, Arg: uint32(i)})
		}
	}
	return out
}

// smallImage is how many pages an image may have for all of them to be present when
// a process starts; of larger ones only the headers and private pages are.
const smallImage = 64

// templateRegions turns the pages laid out for a template into regions: private
// pages with content become copies of their frames, and so do the pages of images
// that the loader has written.
func (w *bootWriter) templateRegions(p *process) (regions []BootRegion, touch []uint64) {
	private := func(va uint64) uint32 {
		pte := p.space.entryOf(va)
		if pte&pteValid == 0 || pte&pteDirty == 0 {
			return 0
		}
		return uint32(pte & ptePFN >> pageShift)
	}
	for _, r := range w.userRegions(p.user) {
		switch r.Kind {
		case RegionZero:
			backing := make([]uint32, (r.End-r.Start)/pageSize)
			for i := range backing {
				va := r.Start + uint64(i)*pageSize
				if backing[i] = private(va); backing[i] != 0 {
					touch = append(touch, va)
				}
			}
			r.Kind, r.Backing = RegionInit, w.put(backing)
			regions = append(regions, r)
		case RegionImage:
			regions, touch = w.splitImage(r, private, regions, touch)
		case RegionShared:
			touch = append(touch, r.Start)
			regions = append(regions, r)
		default:
			regions = append(regions, r)
		}
	}
	return regions, touch
}

// splitImage divides a region of an image at its private pages.
func (w *bootWriter) splitImage(r BootRegion, private func(uint64) uint32, regions []BootRegion, touch []uint64) ([]BootRegion, []uint64) {
	pages := w.imagePages[r.Segment]
	rest := r
	flush := func(end uint64) {
		if end > rest.Start {
			part := rest
			part.End = end
			regions = append(regions, part)
		}
	}
	for va := r.Start; va < r.End; va += pageSize {
		pfn := private(va)
		if pfn != 0 || pages <= smallImage || va == r.Start && r.FirstPage == 0 {
			touch = append(touch, va)
		}
		if pfn == 0 {
			continue
		}
		flush(va)
		prot := uint32(0x04) // PAGE_READWRITE: copied already
		if r.Prot == 0x80 || r.Prot == 0x40 {
			prot = 0x40
		} else if r.Prot != 0x08 {
			prot = r.Prot
		}
		regions = append(regions, BootRegion{Start: va, End: va + pageSize, Kind: RegionInit, Prot: prot, Backing: w.put([]uint32{pfn})})
		rest.FirstPage += uint32((va + pageSize - rest.Start) / pageSize)
		rest.Start = va + pageSize
	}
	flush(r.End)
	return regions, touch
}
