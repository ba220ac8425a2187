package memhook

import (
	"unsafe"

	"vmav.dev/vmav/internal/source"
)

// These declarations mirror kernel/kvm-memhook/uapi/kvm_memhook.h; their names are the
// header's without its prefix. TestABIIsTheHeaders compares the two.
const (
	apiMajor = 1
	apiMinor = 0
	api      = apiMajor<<16 | apiMinor

	maxRanges     = 1024
	maxRangeBytes = 64 << 20

	vendorAMD   = 1
	vendorIntel = 2

	stateGone = 1 << 0

	slotReadonly = 1 << 0

	regsHalted = 1 << 0
	regsNested = 1 << 1

	hookNewDTB = 1 << 0
	hookSwitch = 1 << 1
	hookUser   = 1 << 2
)

type attachArg struct {
	API      uint32
	VMFd     int32
	Flags    uint32
	Reserved uint32
}

type infoArg struct {
	API             uint32
	Vendor          uint32
	State           uint32
	VCPUs           uint32
	SlotsGeneration uint64
	EventsLost      uint64
	Reserved        [2]uint64
}

type slotArg struct {
	GPA      uint64
	Size     uint64
	Flags    uint32
	Reserved uint32
}

type slotsArg struct {
	Slots      uint64
	Count      uint32
	Reserved   uint32
	Generation uint64
}

type rangeArg struct {
	GPA   uint64
	Buf   uint64
	Len   uint32
	Error int32
}

type rwArg struct {
	Ranges uint64
	Count  uint32
	Failed uint32
}

type segmentArg struct {
	Base     uint64
	Limit    uint32
	Selector uint16
	Attrib   uint16
}

type tableArg struct {
	Base     uint64
	Limit    uint32
	Reserved uint32
}

type regsArg struct {
	VCPU         uint32
	TimeoutMs    uint32
	Flags        uint32
	CPL          uint32
	GPR          [16]uint64
	RIP          uint64
	RFLAGS       uint64
	CR0          uint64
	CR2          uint64
	CR3          uint64
	CR4          uint64
	EFER         uint64
	STAR         uint64
	LSTAR        uint64
	CSTAR        uint64
	KernelGSBase uint64
	SysenterEIP  uint64
	CS           segmentArg
	SS           segmentArg
	FS           segmentArg
	GS           segmentArg
	TR           segmentArg
	GDT          tableArg
	IDT          tableArg
	Reserved     [4]uint64
}

type hooksArg struct {
	Mask     uint32
	Count    uint32
	DTB      uint64
	PeriodUs uint32
	Reserved uint32
}

type guardArg struct {
	GPA   uint64
	Mask  uint64
	Value uint64
}

type actionArg struct {
	Type      uint32
	Flags     uint32
	Cookie    uint64
	DTB       uint64
	UserDTB   uint64
	TimeoutMs uint32
	Set       uint32
	GPR       [16]uint64
	RIP       uint64
	RFLAGS    uint64
	Address   uint64
	ErrorCode uint32
	CS        uint32
	RIPMin    uint64
	RIPMax    uint64
	TEB       uint64
	Saved     uint64
	Guards    uint32
	Reserved  uint32
	Guard     [source.MaxGuards]guardArg
}

type cancelArg struct {
	Cookie    uint64
	Flags     uint32
	Cancelled uint32
}

type eventArg struct {
	Type   uint32
	VCPU   uint32
	TimeNs uint64
	Cookie uint64
	Lost   uint64
	DTB    uint64
	RIP    uint64
	TEB    uint64
	RFLAGS uint64
	GPR    [16]uint64
	CPL    uint32
	Count  uint32
	Reason uint32
	CS     uint16
	Code64 uint16
}

// Ioctl numbers, by the kernel's asm-generic/ioctl.h: direction, size, type, number.
const (
	iocMagic = 0xb7
	iocWrite = 1 << 30
	iocRead  = 2 << 30

	getAPI    = iocMagic << 8
	attach    = iocWrite | unsafe.Sizeof(attachArg{})<<16 | iocMagic<<8 | 0x01
	getInfo   = iocRead | unsafe.Sizeof(infoArg{})<<16 | iocMagic<<8 | 0x10
	getSlots  = iocRead | iocWrite | unsafe.Sizeof(slotsArg{})<<16 | iocMagic<<8 | 0x11
	readMem   = iocRead | iocWrite | unsafe.Sizeof(rwArg{})<<16 | iocMagic<<8 | 0x12
	writeMem  = iocRead | iocWrite | unsafe.Sizeof(rwArg{})<<16 | iocMagic<<8 | 0x13
	syncMap   = iocMagic<<8 | 0x14
	getRegs   = iocRead | iocWrite | unsafe.Sizeof(regsArg{})<<16 | iocMagic<<8 | 0x15
	setHooks  = iocWrite | unsafe.Sizeof(hooksArg{})<<16 | iocMagic<<8 | 0x16
	addAction = iocWrite | unsafe.Sizeof(actionArg{})<<16 | iocMagic<<8 | 0x17
	cancel    = iocRead | iocWrite | unsafe.Sizeof(cancelArg{})<<16 | iocMagic<<8 | 0x18
)
