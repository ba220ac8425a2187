package ntguest

import "fmt"

// Kinds of Implant.
const (
	ImplantHook    = "hook"    // a jump over the first bytes of an exported function, in one process
	ImplantRegion  = "region"  // a large private range, readable, writable and executable, with code on two of its pages
	ImplantImage   = "image"   // a private range that holds a program as a loader would map it; its pages became executable later
	ImplantHeaders = "headers" // the headers of a loaded DLL, wiped
	ImplantUnpack  = "unpack"  // a packed program's code, decoded into a section that has no bytes in the file
)

// ImplantMarker is in the code of ImplantRegion and UnpackedMarker in what packed.exe
// unpacks; the file of neither process holds them.
const (
	ImplantMarker  = "VMAV_TEST_IMPLANT"
	UnpackedMarker = "VMAV_TEST_UNPACKED"
)

// Implant is one trace of malware in a process.
type Implant struct {
	Kind  string
	PID   uint64
	Start uint64 // of the bytes that matter
	End   uint64 // exclusive
}

// Implants returns the implants that Options.Implants laid out.
func (m *Machine) Implants() []Implant { return m.b.implants }

// implant changes the processes that are laid out.
func (b *builder) implant() {
	hooked := b.named("notepad.exe")
	kernel32 := b.files.byName["kernel32.dll"]
	at := kernel32.base + kernel32.file.exports["Sleep"].rva
	b.patch(hooked, kernel32, at, []byte{0xe9, 0xfb, 0xee, 0x11, 0x22})
	b.implants = append(b.implants, Implant{ImplantHook, hooked.pid, at, at + 5})

	wiped := b.named("explorer.exe")
	b.patch(wiped, kernel32, kernel32.base, make([]byte, 0x400))
	b.implants = append(b.implants, Implant{ImplantHeaders, wiped.pid, kernel32.base, kernel32.base + 0x400})

	p := b.named("winver.exe")
	const sparse, sparseSize = 0x30000000, 0x400000
	p.user.vad(vadSpec{start: sparse, end: sparse + sparseSize, prot: mmExecuteReadWrite, private: true, commit: sparseSize / pageSize})
	for _, page := range []uint64{3, 700} {
		va := sparse + page*pageSize
		p.user.s.mapFrame(va, b.mem.alloc(), pteUser|pteWrite|pteDirty)
		p.user.s.write(va+0x123, []byte("\xb8\x2a\x00\x00\x00\xc3"+ImplantMarker))
		b.implants = append(b.implants, Implant{ImplantRegion, p.pid, va, va + pageSize})
	}

	p = b.named("conhost.exe")
	const injected = 0x34000000
	host, err := b.files.hostPath("malware.exe", false)
	if err != nil {
		panic(err)
	}
	f := b.files.parsed[host]
	img := f.relocated(injected)
	p.user.vad(vadSpec{start: injected, end: injected + f.size, prot: mmReadWrite, private: true, commit: f.size / pageSize})
	for off := uint64(0); off < f.size; off += pageSize {
		bits := uint64(pteUser | pteWrite | pteDirty)
		if prot := f.protAt(off / pageSize); prot != mmExecuteRead && prot != mmExecuteWriteCopy {
			bits |= pteNX
		}
		p.user.s.mapFrame(injected+off, b.mem.alloc(), bits)
	}
	p.user.s.write(injected, img)
	b.implants = append(b.implants, Implant{ImplantImage, p.pid, injected, injected + f.size})

	p = b.named("packed.exe")
	for _, s := range p.exe.file.sections {
		if s.name != "UPX0" {
			continue
		}
		at := p.exe.base + s.rva + pageSize
		b.patch(p, p.exe, at, []byte("\xb8\x2a\x00\x00\x00\xc3"+UnpackedMarker))
		b.implants = append(b.implants, Implant{ImplantUnpack, p.pid, at, at + pageSize})
	}
}

// patch writes to a page of an image as a process does that may: to a copy of its own.
func (b *builder) patch(p *process, im *image, va uint64, code []byte) {
	page := va &^ (pageSize - 1)
	pfn := b.mem.alloc()
	copy(b.mem.frame(pfn)[:], im.content[page-im.base:])
	if im.private[(page-im.base)/pageSize] {
		copy(b.mem.frame(pfn)[:], im.bound[page-im.base:])
	}
	copy(b.mem.frame(pfn)[va-page:], code)
	bits := uint64(pteUser | pteWrite | pteDirty)
	if prot := im.file.protAt((page - im.base) / pageSize); prot != mmExecuteRead && prot != mmExecuteWriteCopy {
		bits |= pteNX
	}
	p.user.own[page] = true
	p.user.s.mapFrame(page, pfn, bits)
}

// named is the first process of a name.
func (b *builder) named(name string) *process {
	for _, p := range b.procs {
		if p.spec.name == name && p.user != nil {
			return p
		}
	}
	panic(fmt.Errorf("the scenario has no process %s", name))
}
