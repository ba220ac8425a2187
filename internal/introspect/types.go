package introspect

import (
	"time"

	"vmav.dev/vmav/internal/winstruct"
)

// Kernel describes the running Windows kernel.
type Kernel struct {
	Base     uint64 // virtual address of the kernel image
	Size     uint32 // SizeOfImage, bytes
	DTB      uint64 // of the System process
	Identity winstruct.Identity
	Build    uint32 // NtBuildNumber without its flag bits: 19041
	Version  string // "10.0.19041"
	Release  string // "Windows 10 2004", "Windows Server 2025"; "" if no name is known
	Paging   string // "x64", "x64-la57", "x86-pae", "x86"
	Bits     int    // 64 or 32
	Located  string // how it was found: "LSTAR of vCPU 0", "physical scan"

	// Inferred is set if there is no profile for this build. It is the version of the near
	// build whose offsets were proven in the guest's memory. Unproven names what is left
	// out because it was not proven. Even a build's own profile does not tell everything.
	Inferred string
	Unproven []string
}

// Place says where a guest's kernel is. With it the kernel is found again without a search
// and without the vCPUs' registers. It is valid until the guest restarts. The zero Place
// stands for no place.
type Place struct {
	Paging    string // as Kernel.Paging
	DTB, Base uint64 // as Kernel's
	Located   string // as Kernel.Located: how the kernel was found the first time
}

// Place returns the place of the kernel.
func (k Kernel) Place() Place { return Place{k.Paging, k.DTB, k.Base, k.Located} }

// Process is one process of the guest, as its EPROCESS describes it. All text comes from
// the guest and must be escaped before it is printed.
type Process struct {
	PID, PPID   uint64
	Name        string // ImageFileName, at most 15 bytes
	Path        string // full NT or DOS path, "" if there is none or it could not be read
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
	SectionBase uint64   // address of its program
	Sources     []string // SourceList, SourceCID
	Flags       []string // FlagExited and so on

	createTime uint64 // FILETIME
}

// Identity distinguishes the process from every other that ever ran in its guest.
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

	OriginalBase uint64 // the file's preferred base, as the loader recorded it; 0 if unknown
	EntryPoint   uint64 // address, as the loader recorded it; 0 if unknown or none
	vad          *VAD
}

// VAD returns the descriptor of the range in which the image is mapped. It is nil for
// drivers, and for an image that no range is known of.
func (m *Module) VAD() *VAD { return m.vad }
