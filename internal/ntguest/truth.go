package ntguest

import (
	"encoding/json"
	"time"
)

// Truth says what the laid-out memory contains, for comparison with a reader's view.
// Addresses are virtual unless said otherwise.
type Truth struct {
	Build     string         `json:"build"`
	Version   string         `json:"version"`
	Kernel    TruthKernel    `json:"kernel"`
	Processes []TruthProcess `json:"processes"`
	Drivers   []TruthModule  `json:"drivers"`
	Hidden    []uint64       `json:"hidden"`            // pids off the process list
	Unbound   map[string]int `json:"unbound,omitempty"` // imports nothing exports, by importing file
}

// TruthKernel identifies the kernel.
type TruthKernel struct {
	Base uint64 `json:"base"`
	Size uint64 `json:"size"`
	PDB  string `json:"pdb"`
	GUID string `json:"guid"`
	Age  uint32 `json:"age"`
	DTB  uint64 `json:"dtb"` // physical
	// Levels of page tables: 4, or 5 with LA57; on x86 2, or 3 with PAE.
	Levels int `json:"levels"`
}

// TruthProcess is one process.
type TruthProcess struct {
	PID      uint64        `json:"pid"`
	PPID     uint64        `json:"ppid"`
	Name     string        `json:"name"`
	Path     string        `json:"path"`
	Command  string        `json:"command"`
	Session  int           `json:"session"` // -1 for none
	Created  time.Time     `json:"created"`
	Exited   *time.Time    `json:"exited"`
	DTB      uint64        `json:"dtb"`      // physical, without flag bits
	UserDTB  uint64        `json:"user_dtb"` // 0 without KVA shadow
	EPROCESS uint64        `json:"eprocess"`
	PEB      uint64        `json:"peb"`
	PEB32    uint64        `json:"peb32"`
	Wow64    bool          `json:"wow64"`
	Critical bool          `json:"critical"`
	SID      string        `json:"sid"` // of the token's user
	Threads  int           `json:"threads"`
	TIDs     []uint64      `json:"tids"`
	Modules  []TruthModule `json:"modules"`
	VADs     []TruthVAD    `json:"vads"`
}

// TruthModule is one image: a DLL or program, or a driver.
type TruthModule struct {
	Name  string `json:"name"`
	Path  string `json:"path"`
	Base  uint64 `json:"base"`
	Size  uint64 `json:"size"`
	Wow64 bool   `json:"wow64,omitempty"`
	File  string `json:"file,omitempty"` // name of the file on the test host
	// Absent are the RVAs of pages that are not mapped in the process. Lost are those of
	// them that are nowhere in memory, but only in the file.
	Absent []uint64 `json:"absent,omitempty"`
	Lost   []uint64 `json:"lost,omitempty"`
}

// TruthVAD is one range of a process's address space.
type TruthVAD struct {
	Start   uint64 `json:"start"`
	End     uint64 `json:"end"` // of the last byte
	Protect uint32 `json:"protect"`
	Private bool   `json:"private"`
	Path    string `json:"path,omitempty"`
}

// JSON returns the truth as a JSON document.
func (t *Truth) JSON() []byte {
	text, err := json.MarshalIndent(t, "", "  ")
	if err != nil {
		panic(err) // plain data
	}
	return append(text, '\n')
}

func (b *builder) writeTruth() {
	t := &b.truth
	t.Build, t.Version = b.build.Name, b.build.Version
	id := b.build.Identity
	t.Kernel = TruthKernel{Base: b.image.base, Size: b.image.size, PDB: id.PDB, GUID: id.GUID, Age: id.Age, DTB: b.kernel.dtb, Levels: b.levels()}
	t.Unbound = b.files.unbound
	if t.Hidden == nil {
		t.Hidden = []uint64{}
	}
	for _, d := range b.drivers {
		t.Drivers = append(t.Drivers, TruthModule{Name: d.name, Path: d.path, Base: d.base, Size: d.size})
	}
	for _, p := range b.procs {
		t.Processes = append(t.Processes, b.processTruth(p))
	}
}

// levels is how many levels the guest's page tables have.
func (b *builder) levels() int {
	if b.x86() {
		return 2 + boolBit(b.pae())
	}
	return 4 + boolBit(b.opts.LA57)
}

func (b *builder) processTruth(p *process) TruthProcess {
	t := TruthProcess{PID: p.pid, PPID: p.ppid, Name: clip(p.spec.name, 14), Path: p.path, Session: p.spec.session,
		Created: p.created.UTC().Truncate(100), DTB: p.space.dtb, UserDTB: p.userRoot,
		EPROCESS: p.eprocess, PEB: p.peb, PEB32: p.peb32, Wow64: p.spec.wow64 && !p.spec.exited, Critical: p.spec.critical, SID: b.account(p.spec),
		Threads: len(p.threads), TIDs: []uint64{}, Modules: []TruthModule{}, VADs: []TruthVAD{}}
	if !p.exited.IsZero() {
		exited := p.exited.UTC()
		t.Exited = &exited
	}
	for _, th := range p.threads {
		t.TIDs = append(t.TIDs, th.tid)
	}
	if p.user == nil {
		return t
	}
	t.Command = p.commandLine()
	module := func(im *image, wow64 bool) {
		m := TruthModule{Name: baseName(im.path), Path: `C:` + im.path, Base: im.base, Size: uint64(len(im.content)), Wow64: wow64, File: im.file.name}
		for _, va := range p.user.absent {
			if va < im.base || va >= im.base+m.Size {
				continue
			}
			m.Absent = append(m.Absent, va-im.base)
			if im.frames[(va-im.base)/pageSize] == 0 && !p.user.own[va] {
				m.Lost = append(m.Lost, va-im.base)
			}
		}
		t.Modules = append(t.Modules, m)
	}
	if p.spec.wow64 {
		for _, name := range []string{"ntdll.dll", "wow64.dll", "wow64cpu.dll"} {
			if im := b.files.byName[name]; im != nil {
				module(im, false)
			}
		}
	}
	for _, im := range p.modules {
		module(im, p.spec.wow64)
	}
	for _, v := range p.user.vads {
		tv := TruthVAD{Start: v.start, End: v.end - 1, Protect: pageProtect[v.prot], Private: v.private}
		if v.image != nil {
			tv.Path = v.image.path
		}
		t.VADs = append(t.VADs, tv)
	}
	return t
}
