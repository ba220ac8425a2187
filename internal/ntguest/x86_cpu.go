package ntguest

// taskLimit is that of Windows' TSS, the last of its bytes.
const taskLimit = 0x20ab

// buildCPUs32 makes GDT, IDT, TSS, KPCR and KPRCB of each processor of a 32-bit guest.
func (b *builder) buildCPUs32() {
	for i := range uint64(ncpu) {
		c := cpu{gdt: b.system.alloc(pageSize, pageSize), idt: b.system.alloc(pageSize, pageSize), tss: b.system.alloc(pageSize, pageSize)}
		c.kpcr = b.sym("KiInitialPCR")
		if i > 0 {
			c.kpcr = b.system.alloc((b.sizeof("_KPCR")+pageSize-1)&^(pageSize-1), pageSize)
		}
		c.bootStack = b.guardedStack(kernelStack / pageSize)
		if b.opts.KVAShadow {
			c.shadowStack = b.guardedStack(1)
		}
		b.writeGDT32(c)
		b.kernel.put(c.tss+4, c.bootStack, 4) // ESP0
		b.kernel.put(c.tss+8, 0x10, 2)
		b.kernel.put(c.tss+0x66, taskLimit+1, 2) // no I/O permission bitmap
		b.writeIDT32(c)
		pcr := b.at("_KPCR", c.kpcr)
		prcb := b.prcb(c)
		pcr.set(c.kpcr, "SelfPcr")
		pcr.set(prcb, "Prcb")
		pcr.set(c.idt, "IDT")
		pcr.set(c.gdt, "GDT")
		pcr.set(c.tss, "TSS")
		pcr.set(1, "MajorVersion")
		pcr.set(1, "MinorVersion")
		pcr.set(i, "Number")
		pcr.set(b.extended(b.sym("KdVersionBlock")), "KdVersionBlock")
		p := b.at("_KPRCB", prcb)
		p.set(i, "Number")
		c.idle = b.idleThread(c)
		p.set(c.idle, "CurrentThread")
		p.set(c.idle, "IdleThread")
		b.kernel.write(p.addr("VendorString"), []byte("AuthenticAMD"))
		b.cpus = append(b.cpus, c)
	}
}

// writeGDT32 lays out the descriptors at the selectors that x86 Windows uses.
func (b *builder) writeGDT32(c cpu) {
	put := func(sel, base, rest uint64) {
		b.kernel.put(c.gdt+sel, rest|base&0xffffff<<16|base>>24<<56, 8)
	}
	put(0x08, 0, 0x00cf9b000000ffff) // kernel code
	put(0x10, 0, 0x00cf93000000ffff) // kernel data
	put(0x18, 0, 0x00cffb000000ffff) // user code
	put(0x20, 0, 0x00cff3000000ffff) // user data
	put(0x28, c.tss, 0x00008b0000000000|taskLimit)
	put(0x30, c.kpcr, 0x0040930000000000|b.sizeof("_KPCR"))
	put(0x38, 0, 0x0040f30000000fff) // TEB
}

// gates32 names the handlers of vectors that have a symbol of their own.
var gates32 = map[uint64]string{0: "KiTrap00", 3: "KiTrap03", 0x0e: "KiTrap0E", 0x2e: "KiSystemService"}

// writeIDT32 points each vector at the runtime's entry code; those that the kernel has a symbol
// for lead there by way of it, but for the code of the KVA shadow, which is apart.
func (b *builder) writeIDT32(c cpu) {
	for v := range uint64(256) {
		handler := b.image.runtime + uint64(b.image.rt.Vectors) + 16*v
		if name := gates32[v]; name != "" && !b.opts.KVAShadow {
			b.jump(b.sym(name), handler)
			handler = b.sym(name)
		}
		if b.opts.KVAShadow {
			handler = b.image.runtime + uint64(b.image.rt.ShadowVectors) + 16*v
		}
		dpl := uint64(0)
		if v == 3 || v == 4 || v >= 0x2a && v <= 0x2e {
			dpl = 3
		}
		b.kernel.put(c.idt+8*v, handler&0xffff|0x08<<16|(0x8e|dpl<<5)<<40|handler>>16<<48, 8)
	}
}

// finishShadow32 fills a process's user root: its own user half, and the shadow kernel half.
func (b *builder) finishShadow32(p *process) {
	for va := uint64(0); va < 1<<32; va += 1 << b.form.top {
		from := b.shadow
		if va < b.user {
			from = p.space
		}
		off := b.index(va, b.form.top)
		b.mem.putEntry(p.userRoot+off, b.mem.entry(from.dtb+off, b.pte), b.pte)
	}
}

// runtimeFile and stubFile are the files of the runtime and its boot stub for the build.
func (b *builder) runtimeFile() string {
	switch {
	case b.pae():
		return "rt32pae.bin"
	case b.x86():
		return "rt32.bin"
	}
	return "rt.bin"
}

func (b *builder) stubFile() string {
	if b.x86() {
		return "boot32.bin"
	}
	return "boot.bin"
}
