package ntguest

import (
	"encoding/binary"
	"fmt"
)

// writeGlobals gives the kernel's global variables their values, once everything
// they refer to exists.
func (b *builder) writeGlobals() {
	k := b.kernel
	put := func(name string, v uint64, size uint32) {
		if va, ok := b.symbol(name); ok {
			k.put(va, v, size)
		}
	}
	put("NtBuildNumber", uint64(b.build.Number)|0xf0000000, 4)
	put("NtMajorVersion", uint64(b.build.Major), 4)
	put("NtMinorVersion", uint64(b.build.Minor), 4)
	put("KeNumberProcessors", uint64(len(b.cpus)), 4)
	put("MmHighestUserAddress", b.highestUser(), b.ptr())
	put("MmUserProbeAddress", b.highestUser()+1, b.ptr())
	if va, ok := b.symbol("MiState"); ok && b.invalidPTEMask() != 0 {
		b.at("_MI_SYSTEM_INFORMATION", va).set(b.invalidPTEMask(), "Hardware.InvalidPteMask")
	}
	if b.opts.KVAShadow {
		put("KiKvaShadow", 1, 1)
	}
	start := uint64(0xffff800000000000)
	switch {
	case b.x86():
		start = b.user
	case b.opts.LA57:
		start = 0xff00000000000000
	}
	put("MmSystemRangeStart", start, b.ptr())
	put("PspCidTable", b.cid.va, b.ptr())
	put("PsInitialSystemProcess", b.procs[0].eprocess, b.ptr())
	for i, c := range b.cpus {
		k.put(b.sym("KiProcessorBlock")+b.word()*uint64(i), b.prcb(c), b.ptr())
	}
	if va, ok := b.symbol("CmpHiveListHead"); ok && b.x86() {
		b.listInit(k, va) // no registry
	}
	lab := fmt.Sprintf("%d.vmav_ntguest.260302-0730", b.build.Number)
	k.write(b.sym("NtBuildLab"), append([]byte(lab), 0))
	// MmProtectToValue translates the protection in a VAD or PTE to PAGE_* constants:
	// three bits of access, then none, no-cache, guard, write-combine.
	access := []uint32{0x01, 0x02, 0x10, 0x20, 0x04, 0x08, 0x40, 0x80}
	for i := range uint64(32) {
		v := access[i%8]
		switch i / 8 {
		case 1:
			v |= 0x200
		case 2:
			v |= 0x100
		case 3:
			v |= 0x400
		}
		if i == 24 {
			v = 0x01
		}
		k.put(b.sym("MmProtectToValue")+4*i, uint64(v), 4)
	}
	if va, ok := b.symbol("KdVersionBlock"); ok {
		v := b.at("_DBGKD_GET_VERSION64", va)
		v.set(0xf, "MajorVersion")
		v.set(uint64(b.build.Number), "MinorVersion")
		v.set(uint64(b.machineType()), "MachineType")
		v.set(b.extended(b.image.base), "KernBase")
		v.set(b.extended(b.sym("PsLoadedModuleList")), "PsLoadedModuleList")
		if b.build.Major < 10 {
			v.set(b.extended(b.sym("KdDebuggerDataBlock")), "DebuggerDataList")
		}
	}
	b.writeDebuggerBlock()
}

// writeDebuggerBlock fills KDDEBUGGER_DATA64 (WDK, wdbgexts.h): in the clear until
// Windows 7, encoded on later builds, where it is of no use to a reader.
func (b *builder) writeDebuggerBlock() {
	va, ok := b.symbol("KdDebuggerDataBlock")
	if !ok {
		return
	}
	if b.build.Major >= 10 {
		noise := make([]byte, 0x380)
		for i := 0; i < len(noise); i += 8 {
			binary.LittleEndian.PutUint64(noise[i:], b.rng.Uint64())
		}
		b.kernel.write(va, noise)
		if va, ok := b.symbol("KdpDataBlockEncoded"); ok {
			b.kernel.put(va, 1, 1)
		}
		return
	}
	put := func(off, v uint64) { b.kernel.put(va+off, b.extended(v), 8) }
	put(0, va) // a list of its own, with pointers of 64 bits on every build
	put(8, va)
	b.kernel.write(va+0x10, []byte("KDBG"))
	b.kernel.put(va+0x14, 0x340, 4)
	put(0x18, b.image.base)
	put(0x48, b.sym("PsLoadedModuleList"))
	put(0x50, b.sym("PsActiveProcessHead"))
	put(0x58, b.sym("PspCidTable"))
	put(0x208, b.sym("NtBuildLab"))
	put(0x218, b.sym("KiProcessorBlock"))
	if csd, ok := b.symbol("CmNtCSDVersion"); ok {
		b.kernel.put(csd, 0x100, 4) // service pack 1
		put(0x268, csd)
	}
}

// prcb is the address of a processor's KPRCB, which is part of its KPCR.
func (b *builder) prcb(c cpu) uint64 { return c.kpcr + uint64(b.prcbOffset()) }

func (b *builder) prcbOffset() uint32 {
	name := "Prcb"
	if b.x86() {
		name = "PrcbData" // Prcb is the pointer to it
	}
	return b.at("_KPCR", 0).must(name).Offset
}

// extended is an address as 64-bit fields hold it: with its sign.
func (b *builder) extended(va uint64) uint64 {
	if b.x86() {
		return uint64(int64(int32(va)))
	}
	return va
}

func (b *builder) highestUser() uint64 {
	if b.x86() {
		return b.user - 0x10001
	}
	if b.build.Major < 10 {
		return 0x7fffffeffff
	}
	return 0x7ffffffeffff
}
