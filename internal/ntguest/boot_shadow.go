package ntguest

// patchRuntime writes this build's KPCR offsets into the runtime's shadow code.
func (b *builder) patchRuntime(rt *Runtime) error {
	if !b.opts.KVAShadow {
		return nil
	}
	o := b.shadowOffsets()
	return rt.PatchShadow(o[0], o[1], o[2])
}

// shadowOffsets are the offsets in the KPCR of the kernel's page tables, the transition stack
// and the user's stack pointer, BootNone where the build has none.
func (b *builder) shadowOffsets() (out [3]uint32) {
	names := [3]string{"KernelDirectoryTableBase", "RspBaseShadow", "UserRspShadow"}
	if b.x86() {
		names = [3]string{"KernelDirectoryTableBase", "EspBaseShadow", "UserEspShadow"}
	}
	for i, name := range names {
		f, ok := b.at("_KPRCB", 0).field(name)
		switch {
		case ok:
			out[i] = b.prcbOffset() + f.Offset
		case b.x86(): // before 2018: words that are reserved serve as well
			out[i] = b.at("_KPCR", 0).must("KernelReserved2").Offset + 4*uint32(i)
		default:
			out[i] = BootNone
		}
	}
	return out
}

// buildShadow makes the kernel half that user page tables have under KVA shadow:
// the entry code, and what the processor and that code touch before CR3 is the
// kernel's. Every process's user root gets its top-level entries.
func (b *builder) buildShadow() {
	if !b.opts.KVAShadow {
		return
	}
	b.shadow = b.newUserSpace(b.newRoot())
	show := func(va, n uint64) {
		for page := va &^ (pageSize - 1); page < va+n; page += pageSize {
			if pte := b.kernel.entryOf(page); pte&pteValid != 0 {
				b.shadow.setPTE(page, pte)
			}
		}
	}
	rt := b.image.rt
	show(b.image.runtime+uint64(rt.KVASStart), uint64(rt.KVASEnd-rt.KVASStart))
	if b.x86() {
		// Of the KPCR what the code needs before it has the kernel's page tables.
		for _, c := range b.cpus {
			o := b.shadowOffsets()
			show(c.kpcr+uint64(o[0]), 4)
			show(c.kpcr+uint64(o[1]), 4)
			show(c.gdt, pageSize)
			show(c.idt, pageSize)
			show(c.tss, pageSize)
			show(c.shadowStack-pageSize, pageSize)
		}
		return
	}
	for _, name := range []string{"KiSystemCall64Shadow", "KiSystemCall32Shadow"} {
		show(b.sym(name), 5)
	}
	for _, name := range gates {
		if _, ok := b.profile.Symbol(name + "Shadow"); ok {
			show(b.sym(name+"Shadow"), 5)
		}
	}
	for _, c := range b.cpus {
		show(c.kpcr, b.sizeof("_KPCR"))
		show(c.gdt, pageSize)
		show(c.idt, pageSize)
		show(c.tss, pageSize)
		show(c.shadowStack-pageSize, pageSize)
		for i := range uint64(3) {
			top := b.kernel.get(c.tss+0x24+8*i, 8)
			show(top-2*pageSize, 2*pageSize)
		}
	}
}

// finishShadow fills a process's user root: its own user half, the shadow kernel
// half.
func (b *builder) finishShadow(p *process) {
	if p.userRoot == 0 {
		return
	}
	if b.x86() {
		b.finishShadow32(p)
		return
	}
	for i := range uint64(512) {
		from := p.space.dtb
		if i >= 256 {
			from = b.shadow.dtb
		}
		b.mem.put64(p.userRoot+8*i, b.mem.get64(from+8*i))
	}
}
