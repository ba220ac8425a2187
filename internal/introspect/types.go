package introspect

import (
	"time"

	"vmav.dev/vmav/internal/winstruct"
)

// Kernel is what was established about the running Windows kernel.
type Kernel struct {
	Base     uint64 // virtual address of the kernel image
	Size     uint32 // SizeOfImage, bytes
	DTB      uint64 // of the System process
	Identity winstruct.Identity
	Build    uint32 // NtBuildNumber without its flag bits: 19041
	Version  string // "10.0.19041"
	Paging   string // "x64", "x64-la57", "x86-pae", "x86"
	Bits     int    // 64 or 32
	Located  string // how it was found: "LSTAR of vCPU 0", "physical scan"

	// Inferred is set where no profile fits this build: the version of the build nearest
	// to it, whose offsets were proven in the guest's memory. Unproven names what such a
	// guest is read without.
	Inferred string
	Unproven []string
}

// Place is where a running guest's kernel is: who knows it finds the kernel again without the
// vCPUs' registers and without a search. It holds until the guest starts anew. The zero Place is none.
type Place struct {
	Paging    string // as Kernel.Paging
	DTB, Base uint64 // as Kernel's
	Located   string // as Kernel.Located: how the kernel was found the first time
}

// Place is where the kernel is.
func (k Kernel) Place() Place { return Place{k.Paging, k.DTB, k.Base, k.Located} }

// Process is one process of the guest, as its EPROCESS describes it. Text is
// guest-controlled: printable only after escaping.
type Process struct {
	PID, PPID   uint64
	Name        string // ImageFileName, at most 15 bytes
	Path        string // full NT or DOS path, "" where it could not be read
	CommandLine string
	Session     int32 // -1 for none
	Created     time.Time
	Exited      time.Time // zero while it runs
	ExitStatus  uint32    // NTSTATUS; meaningful once Exited is set
	Threads     uint32
	Wow64       bool
	DTB         uint64 // EPROCESS.Pcb.DirectoryTableBase without flag bits
	UserDTB     uint64 // KVA shadow table, 0 for none
	EPROCESS    uint64
	PEB         uint64
	PEB32       uint64   // of a wow64 process
	SectionBase uint64   // where its program is mapped
	Sources     []string // where it was found: "list", "cid"
	Flags       []string // FlagExited and so on

	createTime uint64 // as Windows has it
}

// Identity tells the process from every other that ever was in its guest.
func (p *Process) Identity() Identity {
	return Identity{EPROCESS: p.EPROCESS, PID: p.PID, CreateTime: p.createTime, DTB: p.DTB}
}

// Module is one image mapped into a process, or one kernel driver.
type Module struct {
	Name  string // base name
	Path  string
	Base  uint64
	Size  uint64 // bytes
	Wow64 bool   // on the 32-bit loader list
	Flags []string

	OriginalBase uint64 // the base the file prefers, as the loader noted it; 0 where unknown
	EntryPoint   uint64 // address, as the loader noted it; 0 where unknown or none
	vad          *VAD
}

// VAD is the descriptor of the range the image is mapped in; nil for drivers and
// where there is none.
func (m *Module) VAD() *VAD { return m.vad }
