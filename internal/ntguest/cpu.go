package ntguest

import "fmt"

// cpu is one virtual processor as the kernel describes it.
type cpu struct {
	kpcr, gdt, idt, tss uint64
	bootStack           uint64
	shadowStack         uint64
	idle                uint64 // ETHREAD
}

const (
	ncpu        = 2
	gdtLimit    = 0x6f
	idtLimit    = 0xfff
	timerVector = 0xd1
	ipiVector   = 0xe1
)

// gates names the handlers of vectors that have a symbol of their own.
var gates = map[int]string{0: "KiDivideErrorFault", 3: "KiBreakpointTrap", 14: "KiPageFault"}

// buildCPUs makes GDT, IDT, TSS, KPCR and KPRCB of each processor.
func (b *builder) buildCPUs() {
	if b.x86() {
		b.buildCPUs32()
		return
	}
	for i := range ncpu {
		c := cpu{gdt: b.system.alloc(pageSize, pageSize), idt: b.system.alloc(pageSize, pageSize), tss: b.system.alloc(pageSize, pageSize)}
		c.kpcr = 0
		if i == 0 {
			c.kpcr, _ = b.symbol("KiInitialPCR")
			if _, ok := b.profile.Symbol("KiInitialPCR"); !ok {
				c.kpcr = 0
			}
		}
		if c.kpcr == 0 {
			c.kpcr = b.system.alloc((b.sizeof("_KPCR")+pageSize-1)&^(pageSize-1), pageSize)
		}
		b.writeGDT(c)
		b.writeTSS(&c)
		b.writeIDT(c)
		pcr := b.at("_KPCR", c.kpcr)
		prcb := pcr.addr("Prcb")
		pcr.set(c.gdt, "GdtBase")
		pcr.set(c.tss, "TssBase")
		pcr.set(c.kpcr, "Self")
		pcr.set(prcb, "CurrentPrcb")
		pcr.set(c.idt, "IdtBase")
		pcr.set(1, "MajorVersion")
		pcr.set(1, "MinorVersion")
		if va, ok := b.symbol("KdVersionBlock"); ok {
			pcr.opt(va, "KdVersionBlock")
		}
		p := b.at("_KPRCB", prcb)
		p.set(uint64(i), "Number")
		p.opt(uint64(i), "LegacyNumber")
		p.set(c.bootStack, "RspBase")
		c.idle = b.idleThread(c)
		p.set(c.idle, "CurrentThread")
		p.set(c.idle, "IdleThread")
		p.opt(b.kernel.dtb|2*uint64(boolBit(b.opts.KVAShadow)), "KernelDirectoryTableBase")
		b.kernel.write(p.addr("VendorString"), []byte("AuthenticAMD"))
		b.cpus = append(b.cpus, c)
	}
}

// writeGDT lays out the descriptors at the selectors that x64 Windows uses.
func (b *builder) writeGDT(c cpu) {
	put := func(sel uint64, v uint64) { b.kernel.put(c.gdt+sel, v, 8) }
	put(0x10, 0x00209b0000000000) // kernel code, 64-bit
	put(0x18, 0x0040930000000000) // kernel data
	put(0x20, 0x00cffb000000ffff) // user code, 32-bit
	put(0x28, 0x00cff3000000ffff) // user data
	put(0x30, 0x0020fb0000000000) // user code, 64-bit
	put(0x40, 0x0000890000000067|c.tss&0xffffff<<16|c.tss>>24&0xff<<56)
	put(0x48, c.tss>>32)
	put(0x50, 0x0040f30000003c00) // user data of the 32-bit TEB
}

func (b *builder) writeTSS(c *cpu) {
	c.bootStack = b.guardedStack(kernelStack / pageSize)
	if b.opts.KVAShadow {
		c.shadowStack = b.guardedStack(1)
	}
	b.kernel.put(c.tss+4, c.bootStack, 8) // RSP0
	for i := range uint64(3) {
		b.kernel.put(c.tss+0x24+8*i, b.guardedStack(2), 8) // IST1 to IST3
	}
	b.kernel.put(c.tss+0x66, 0x68, 2) // no I/O permission bitmap
}

// guardedStack is the top of a kernel stack of n pages, with one below that is not mapped.
func (b *builder) guardedStack(n uint64) uint64 {
	va := b.system.reserve((n+1)*pageSize, pageSize) + pageSize
	for off := uint64(0); off < n*pageSize; off += pageSize {
		b.kernel.mapFrame(va+off, b.mem.alloc(), b.system.bits)
	}
	return va + n*pageSize
}

// writeIDT points each vector at the runtime's entry code; those that the kernel has
// a symbol for lead there by way of it.
func (b *builder) writeIDT(c cpu) {
	ist := map[int]uint64{2: 3, 8: 1, 18: 2}
	for v := range 256 {
		handler := b.image.base + 0x1000
		if b.image.runtime != 0 {
			handler = b.image.runtime + uint64(b.image.rt.Vectors) + 16*uint64(v)
			if b.opts.KVAShadow {
				handler = b.image.runtime + uint64(b.image.rt.ShadowVectors) + 16*uint64(v)
			}
		}
		if name := gates[v]; name != "" {
			if b.opts.KVAShadow {
				name += "Shadow"
			}
			if va, ok := b.profile.Symbol(name); ok {
				b.jump(b.image.base+va, handler)
				handler = b.image.base + va
			}
		}
		dpl := uint64(0)
		if v == 3 || v == 4 || v == 0x2c || v == 0x2d || v == 0x2e {
			dpl = 3
		}
		at := c.idt + 16*uint64(v)
		b.kernel.put(at, handler&0xffff|0x10<<16|ist[v]<<32|(0x8e|dpl<<5)<<40|handler>>16&0xffff<<48, 8)
		b.kernel.put(at+8, handler>>32, 8)
	}
}

// jump writes a near jump at a kernel symbol, once.
func (b *builder) jump(at, to uint64) {
	rel := int64(to) - int64(at+5)
	if rel != int64(int32(rel)) {
		panic(fmt.Errorf("no near jump leads from %#x to %#x", at, to))
	}
	b.kernel.write(at, []byte{0xe9, byte(rel), byte(rel >> 8), byte(rel >> 16), byte(rel >> 24)})
}

// buildEntries points the system call symbols at the runtime.
func (b *builder) buildEntries() {
	if b.image.runtime == 0 {
		return
	}
	h := b.image.rt
	if b.x86() {
		b.jump(b.sym("KiFastCallEntry"), b.image.runtime+uint64(h.Syscall64))
		return
	}
	for name, off := range map[string]uint32{"KiSystemCall64": h.Syscall64, "KiSystemCall32": h.Syscall32,
		"KiSystemCall64Shadow": h.ShadowSyscall64, "KiSystemCall32Shadow": h.ShadowSyscall32} {
		if va, ok := b.symbol(name); ok {
			if _, have := b.profile.Symbol(name); have {
				b.jump(va, b.image.runtime+uint64(off))
			}
		}
	}
}

// buildShared makes KUSER_SHARED_DATA, one page that the kernel writes and every
// process reads.
func (b *builder) buildShared() {
	kernelAddress := b.kuser()
	b.live.kuserPFN = b.mem.alloc()
	b.kernel.mapFrame(kernelAddress, b.live.kuserPFN, pteWrite|pteDirty|pteNX|pteGlobal)
	o := b.at("_KUSER_SHARED_DATA", kernelAddress)
	o.opt(0x0fa00000, "TickCountMultiplier")
	b.kernel.write(o.addr("NtSystemRoot"), utf16le(`C:\Windows`))
	o.set(1, "NtProductType")
	o.set(1, "ProductTypeIsValid")
	o.set(uint64(b.build.Major), "NtMajorVersion")
	o.set(uint64(b.build.Minor), "NtMinorVersion")
	o.opt(uint64(b.build.Number), "NtBuildNumber")
	o.set(2, "AlternativeArchitecture")
	o.opt(0, "SystemCall") // system calls by the syscall instruction
	if b.pae() {
		const nxEnabled = 12 // PF_NX_ENABLED (Windows SDK, winnt.h)
		b.kernel.put(o.addr("ProcessorFeatures")+nxEnabled, 1, 1)
	}
}

// kuser is where the kernel has KUSER_SHARED_DATA.
func (b *builder) kuser() uint64 {
	if b.x86() {
		return 0xffdf0000
	}
	return 0xfffff78000000000
}

// finishShared writes the times of the moment that the memory shows.
func (b *builder) finishShared() {
	o := b.at("_KUSER_SHARED_DATA", b.kuser())
	put := func(t uint64, field string) {
		at := o.addr(field)
		b.kernel.put(at, t&0xffffffff, 4)
		b.kernel.put(at+4, t>>32, 4)
		b.kernel.put(at+8, t>>32, 4)
	}
	put(filetime(b.now), "SystemTime")
	put(uint64(b.now.Sub(b.boot)/100), "InterruptTime")
}
