package ntguest

// This file mirrors testdata/ntguest/rt/nt_boot.h, which documents every member;
// a test compares sizes and offsets of the two. Members keep their C names in
// the c tags. All integers are little-endian in memory, and encoding/binary
// writes these types as they are: no padding is implied anywhere.

// BootMagic opens nt_boot, BootVersion is its layout, BootMaxCPU the processors
// it has room for, BootNone an offset or index that a build lacks.
const (
	BootMagic   uint64 = 0x544f4f424d41564e
	BootVersion uint32 = 5
	BootMaxCPU         = 4
	BootNone    uint32 = 0xffffffff

	runtimeMagic uint64 = 0x0031545247545645
	stubMagic    uint64 = 0x00425453564d4156
)

// Kinds of BootRegion.
const (
	RegionZero   = 1
	RegionInit   = 2
	RegionImage  = 3
	RegionShared = 4
	RegionNone   = 5
	RegionAlloc  = 6
)

// Flags of BootProc and BootTemplate.
const (
	ProcWow64    = 1
	ProcKernel   = 2
	ProcExited   = 4
	ProcCritical = 8
)

// States of BootThread (low byte) and the flag that may be added.
const (
	ThreadReady   = 0
	ThreadBlocked = 1
	ThreadKernel  = 2
	ThreadIdle    = 3
	ThreadWow64   = 0x100
)

// Kinds of BootFixup.
const (
	FixReloc      = 1
	FixRelocCID   = 2
	FixPID        = 3
	FixPPID       = 4
	FixTID        = 5
	FixDTB        = 6
	FixUserDTB    = 7
	FixNow        = 8
	FixStackTop   = 9
	FixStackLimit = 10
	FixLink       = 11
	FixCIDProc    = 12
	FixCIDThread  = 13
	FixTypeIndex  = 14
	FixInc32      = 15
	FixInc64      = 16
	FixPoolTag    = 17
	FixPID32      = 18
	FixCounter64  = 19
	FixTID32      = 20
)

// Flags of Boot.
const (
	BootKVAShadow = 1
	BootObCookie  = 2
	BootCIDPacked = 4
	BootCID57     = 16
	BootLA57      = 8
)

// BootTable is an array in guest memory: Count elements of a fixed type at the
// kernel virtual address VA.
type BootTable struct {
	VA    uint64 `c:"va"`
	Count uint64 `c:"count"`
}

// BootCPU describes one virtual processor to the runtime.
type BootCPU struct {
	KPCR        uint64 `c:"kpcr"`
	GDT         uint64 `c:"gdt"`
	IDT         uint64 `c:"idt"`
	GDTLimit    uint16 `c:"gdt_limit"`
	IDTLimit    uint16 `c:"idt_limit"`
	Reserved    uint32 `c:"reserved"`
	TSS         uint64 `c:"tss"`
	BootStack   uint64 `c:"boot_stack"`
	ShadowStack uint64 `c:"shadow_stack"`
}

// BootOff holds the structure offsets of the build, in bytes; BootNone where the
// build lacks the member.
type BootOff struct {
	EpDTB             uint32 `c:"ep_dtb"`
	EpUserDTB         uint32 `c:"ep_user_dtb"`
	KpThreadList      uint32 `c:"kp_thread_list"`
	EpThreadList      uint32 `c:"ep_thread_list"`
	EpCreateTime      uint32 `c:"ep_create_time"`
	EpExitTime        uint32 `c:"ep_exit_time"`
	EpExitStatus      uint32 `c:"ep_exit_status"`
	EpActiveThreads   uint32 `c:"ep_active_threads"`
	EpFlags           uint32 `c:"ep_flags"`
	EpFlagExiting     uint32 `c:"ep_flag_exiting"`
	EpFlagDelete      uint32 `c:"ep_flag_delete"`
	EpObjectTable     uint32 `c:"ep_object_table"`
	EpVADRoot         uint32 `c:"ep_vad_root"`
	EpPEB             uint32 `c:"ep_peb"`
	KtState           uint32 `c:"kt_state"`
	KtWaitReason      uint32 `c:"kt_wait_reason"`
	KtContextSwitches uint32 `c:"kt_context_switches"`
	KtKernelStack     uint32 `c:"kt_kernel_stack"`
	KtTrapFrame       uint32 `c:"kt_trap_frame"`
	KtThreadListEntry uint32 `c:"kt_thread_list_entry"`
	EtThreadListEntry uint32 `c:"et_thread_list_entry"`
	EtExitStatus      uint32 `c:"et_exit_status"`
	EtExitTime        uint32 `c:"et_exit_time"`
	HtTableCode       uint32 `c:"ht_table_code"`
	OhBody            uint32 `c:"oh_body"`
	OhPointerCount    uint32 `c:"oh_pointer_count"`
	OhHandleCount     uint32 `c:"oh_handle_count"`
	PcrCurrentThread  uint32 `c:"pcr_current_thread"`
	PcrNextThread     uint32 `c:"pcr_next_thread"`
	PcrKernelDTB      uint32 `c:"pcr_kernel_dtb"`
	PcrRSPShadow      uint32 `c:"pcr_rsp_shadow"`
	PcrUserRSPShadow  uint32 `c:"pcr_user_rsp_shadow"`
}

// BootSegment is one section object: its prototype PTEs, the frames that hold its file
// content, and what the PTEs are while their pages are in the file alone.
type BootSegment struct {
	Proto   uint64 `c:"proto"`
	Backing uint64 `c:"backing"`
	Count   uint64 `c:"count"`
	File    uint64 `c:"file"`
}

// BootRegion is a run of user pages, [Start, End), of one kind and protection.
type BootRegion struct {
	Start     uint64 `c:"start"`
	End       uint64 `c:"end"`
	Kind      uint32 `c:"kind"`
	Prot      uint32 `c:"prot"`
	Segment   uint32 `c:"segment"`
	FirstPage uint32 `c:"first_page"`
	Backing   uint64 `c:"backing"`
}

// BootProc is a process of the moment that the memory image shows.
type BootProc struct {
	EPROCESS    uint64   `c:"eprocess"`
	DTB         uint64   `c:"dtb"`
	UserDTB     uint64   `c:"user_dtb"`
	PEB         uint64   `c:"peb"`
	PEB32       uint64   `c:"peb32"`
	CreateTime  uint64   `c:"create_time"`
	ExitTime    uint64   `c:"exit_time"`
	ExitStatus  uint32   `c:"exit_status"`
	PID         uint32   `c:"pid"`
	PPID        uint32   `c:"ppid"`
	Session     uint32   `c:"session"`
	Flags       uint32   `c:"flags"`
	FirstRegion uint32   `c:"first_region"`
	Regions     uint32   `c:"regions"`
	TruthLen    uint32   `c:"truth_len"`
	Truth       uint64   `c:"truth"`
	Progress    uint64   `c:"progress"`
	Protection  uint32   `c:"protection"`
	Account     uint32   `c:"account"`
	Name        [16]byte `c:"name"`
}

// BootThread is a thread of that moment.
type BootThread struct {
	ETHREAD    uint64 `c:"ethread"`
	TEB        uint64 `c:"teb"`
	TEB32      uint64 `c:"teb32"`
	StackTop   uint64 `c:"stack_top"`
	StackLimit uint64 `c:"stack_limit"`
	RIP        uint64 `c:"rip"`
	RSP        uint64 `c:"rsp"`
	Arg0       uint64 `c:"arg0"`
	Arg1       uint64 `c:"arg1"`
	TID        uint32 `c:"tid"`
	Proc       uint32 `c:"proc"`
	State      uint32 `c:"state"`
	Reserved   uint32 `c:"reserved"`
}

// BootFixup is one change the runtime makes to the copy of a template.
type BootFixup struct {
	At    uint64 `c:"at"`
	Value uint64 `c:"value"`
	Kind  uint32 `c:"kind"`
	Arg   uint32 `c:"arg"`
}

// BootTemplateThread is a thread that a template starts with.
type BootTemplateThread struct {
	ETHREAD  uint64 `c:"ethread"`
	TEB      uint64 `c:"teb"`
	TEB32    uint64 `c:"teb32"`
	RIP      uint64 `c:"rip"`
	RSP      uint64 `c:"rsp"`
	Arg0     uint64 `c:"arg0"`
	Arg1     uint64 `c:"arg1"`
	Flags    uint32 `c:"flags"`
	Reserved uint32 `c:"reserved"`
}

// BootTemplate is a program that can be started while the guest runs.
type BootTemplate struct {
	Name       [32]byte  `c:"name"`
	Blob       uint64    `c:"blob"`
	BlobSize   uint64    `c:"blob_size"`
	BlobBase   uint64    `c:"blob_base"`
	EPROCESS   uint64    `c:"eprocess"`
	PEB        uint64    `c:"peb"`
	PEB32      uint64    `c:"peb32"`
	Fixups     BootTable `c:"fixups"`
	UserFixups BootTable `c:"ufixups"`
	Threads    BootTable `c:"threads"`
	Regions    BootTable `c:"regions"`
	Touch      BootTable `c:"touch"`
	Truth      uint64    `c:"truth"`
	TruthLen   uint32    `c:"truth_len"`
	Session    uint32    `c:"session"`
	Flags      uint32    `c:"flags"`
	Protection uint32    `c:"protection"`
	Progress   uint64    `c:"progress"`
	Account    uint32    `c:"account"`
	Reserved   uint32    `c:"reserved"`
}

// BootArena is kernel address space set aside in slots of equal size.
type BootArena struct {
	VA     uint64 `c:"va"`
	Stride uint64 `c:"stride"`
	Size   uint64 `c:"size"`
	Count  uint64 `c:"count"`
}

// BootRange is a range of page frame numbers; End is exclusive.
type BootRange struct {
	Start uint64 `c:"start"`
	End   uint64 `c:"end"`
}

// Boot is everything the runtime is told about the build it runs as.
type Boot struct {
	Magic           uint64              `c:"magic"`
	Version         uint32              `c:"version"`
	Size            uint32              `c:"size"`
	Flags           uint64              `c:"flags"`
	KernelBase      uint64              `c:"kernel_base"`
	SystemDTB       uint64              `c:"system_dtb"`
	ShadowPML4      uint64              `c:"shadow_pml4"`
	SelfIndex       uint32              `c:"self_index"`
	NCPU            uint32              `c:"ncpu"`
	InvalidPTEMask  uint64              `c:"invalid_pte_mask"`
	SwizzleBit      uint64              `c:"swizzle_bit"`
	UserEnd         uint64              `c:"user_end"`
	Syscall64       uint64              `c:"syscall64"`
	Syscall32       uint64              `c:"syscall32"`
	Syscall64Shadow uint64              `c:"syscall64_shadow"`
	TimerVector     uint64              `c:"timer_vector"`
	IPIVector       uint64              `c:"ipi_vector"`
	Hyper           uint64              `c:"hyper"`
	Heap            uint64              `c:"heap"`
	HeapSize        uint64              `c:"heap_size"`
	Kuser           uint64              `c:"kuser"`
	ObCookie        uint64              `c:"ob_cookie"`
	FirstPID        uint64              `c:"first_pid"`
	CIDPages        BootTable           `c:"cid_pages"`
	Free            BootTable           `c:"free"`
	Procs           BootTable           `c:"procs"`
	Threads         BootTable           `c:"threads"`
	Regions         BootTable           `c:"regions"`
	Segments        BootTable           `c:"segments"`
	Templates       BootTable           `c:"templates"`
	Slots           BootArena           `c:"slots"`
	Stacks          BootArena           `c:"stacks"`
	Truth           uint64              `c:"truth"`
	TruthLen        uint64              `c:"truth_len"`
	Off             BootOff             `c:"off"`
	CPU             [BootMaxCPU]BootCPU `c:"cpu"`
}

// RuntimeHeader opens rt.bin, the runtime.
type RuntimeHeader struct {
	Magic           uint64 `c:"magic"`
	TextSize        uint32 `c:"text_size"`
	DataOffset      uint32 `c:"data_offset"`
	ImageSize       uint32 `c:"image_size"`
	MemorySize      uint32 `c:"memory_size"`
	Entry           uint32 `c:"entry"`
	Syscall64       uint32 `c:"syscall64"`
	Syscall32       uint32 `c:"syscall32"`
	Int2e           uint32 `c:"int2e"`
	Vectors         uint32 `c:"vectors"`
	KVASStart       uint32 `c:"kvas_start"`
	KVASEnd         uint32 `c:"kvas_end"`
	ShadowSyscall64 uint32 `c:"shadow_syscall64"`
	ShadowSyscall32 uint32 `c:"shadow_syscall32"`
	ShadowVectors   uint32 `c:"shadow_vectors"`
	Patches         uint32 `c:"patches"`
	PatchCount      uint32 `c:"patch_count"`
}

// StubHeader opens boot.bin, the boot stub at physical 1 MiB.
type StubHeader struct {
	Magic     uint64             `c:"magic"`
	Entry32   uint64             `c:"entry32"`
	Size      uint64             `c:"size"`
	SystemDTB uint64             `c:"system_dtb"`
	RTEntry   uint64             `c:"rt_entry"`
	NtBoot    uint64             `c:"nt_boot"`
	Wide      uint64             `c:"wide"`
	Stack     [BootMaxCPU]uint64 `c:"stack"`
}
