package ntguest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// Runtime is rt.bin, the kernel that runs inside the guest: position-independent
// code that the builder places at any page-aligned kernel address.
type Runtime struct {
	RuntimeHeader
	// Image is the content of the runtime's memory, MemorySize bytes: code up to
	// DataOffset, then writable data and zeros.
	Image []byte
}

// Sizes that bound what LoadRuntime and LoadStub accept, in bytes.
const (
	maxRuntime = 1 << 20
	maxStub    = 0x50000 // the stub ends below physical 150000h
	stubBase   = firmwareEnd
)

// LoadRuntime checks rt.bin and expands it to its size in memory.
func LoadRuntime(file []byte) (*Runtime, error) {
	r := new(Runtime)
	if err := binary.Read(bytes.NewReader(file), binary.LittleEndian, &r.RuntimeHeader); err != nil {
		return nil, fmt.Errorf("read header of rt.bin: %w", err)
	}
	h := &r.RuntimeHeader
	switch {
	case h.Magic != runtimeMagic:
		return nil, fmt.Errorf("rt.bin: magic is %#x, want %#x", h.Magic, runtimeMagic)
	case h.MemorySize > maxRuntime || h.MemorySize%pageSize != 0 || uint64(len(file)) > uint64(h.MemorySize):
		return nil, fmt.Errorf("rt.bin: %d bytes of file, %d of memory", len(file), h.MemorySize)
	case h.DataOffset > h.MemorySize || h.DataOffset%pageSize != 0:
		return nil, fmt.Errorf("rt.bin: data at %#x of %#x", h.DataOffset, h.MemorySize)
	case h.KVASStart%pageSize != 0 || h.KVASEnd%pageSize != 0 || h.KVASStart > h.KVASEnd || h.KVASEnd > h.DataOffset:
		return nil, fmt.Errorf("rt.bin: shadow code at %#x-%#x", h.KVASStart, h.KVASEnd)
	case uint64(h.Patches)+8*uint64(h.PatchCount) > uint64(len(file)):
		return nil, errors.New("rt.bin: patch table beyond the file")
	}
	r.Image = make([]byte, h.MemorySize)
	copy(r.Image, file)
	return r, nil
}

// PatchShadow writes the KPCR offsets of this build into the shadow entry code:
// KernelDirectoryTableBase, RspBaseShadow and UserRspShadow of the KPRCB, or what
// serves as these, counted from the start of the KPCR.
func (r *Runtime) PatchShadow(kernelDTB, rspBase, userRsp uint32) error {
	values := [...]uint32{kernelDTB, rspBase, userRsp}
	le := binary.LittleEndian
	for i := uint32(0); i < r.PatchCount; i++ {
		entry := r.Image[r.Patches+8*i:]
		at, which := le.Uint32(entry), le.Uint32(entry[4:])
		if uint64(at)+4 > uint64(r.DataOffset) || which >= uint32(len(values)) {
			return fmt.Errorf("rt.bin: patch %d is at %#x for value %d", i, at, which)
		}
		le.PutUint32(r.Image[at:], values[which])
	}
	return nil
}

// StubParams are what the boot stub hands to the runtime.
type StubParams struct {
	SystemDTB uint64             // physical
	RTEntry   uint64             // virtual address of the runtime's Entry
	NtBoot    uint64             // virtual address of the encoded Boot
	Wide      uint64             // 1 for 5-level paging; on x86 for PAE
	Stacks    [BootMaxCPU]uint64 // stack tops, 0 for processors that do not exist
}

// LoadStub fills in boot.bin's header; it returns the memory to load and the
// physical address of its 32-bit entry point for WriteKernelELF.
func LoadStub(file []byte, p StubParams) (PhysRun, uint32, error) {
	var h StubHeader
	if err := binary.Read(bytes.NewReader(file), binary.LittleEndian, &h); err != nil {
		return PhysRun{}, 0, fmt.Errorf("read header of boot.bin: %w", err)
	}
	if h.Magic != stubMagic || len(file) > maxStub || h.Size != uint64(len(file)) ||
		h.Entry32 < stubBase || h.Entry32 >= stubBase+h.Size {
		return PhysRun{}, 0, fmt.Errorf("boot.bin: magic %#x, %d of %d bytes, entry %#x", h.Magic, len(file), h.Size, h.Entry32)
	}
	if p.SystemDTB == 0 || p.SystemDTB>>32 != 0 {
		return PhysRun{}, 0, fmt.Errorf("boot stub: system DTB %#x is not below 4 GiB", p.SystemDTB)
	}
	h.SystemDTB, h.RTEntry, h.NtBoot, h.Wide, h.Stack = p.SystemDTB, p.RTEntry, p.NtBoot, p.Wide, p.Stacks
	var out bytes.Buffer
	if err := binary.Write(&out, binary.LittleEndian, &h); err != nil {
		return PhysRun{}, 0, fmt.Errorf("write header of boot.bin: %w", err)
	}
	data := append([]byte(nil), file...)
	copy(data, out.Bytes())
	return PhysRun{Addr: stubBase, Data: data}, uint32(h.Entry32), nil
}
