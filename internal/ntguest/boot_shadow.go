package ntguest

// patchRuntime writes this build's KPCR offsets into the runtime's shadow code.
func (b *builder) patchRuntime(rt *Runtime) error {
	if !b.opts.KVAShadow {
		return nil
	}
	prcb := b.at("_KPCR", 0).must("Prcb").Offset
	field := func(name string) uint32 { return prcb + b.at("_KPRCB", 0).must(name).Offset }
	return rt.PatchShadow(field("KernelDirectoryTableBase"), field("RspBaseShadow"), field("UserRspShadow"))
}

// buildShadow makes the kernel half that user page tables have under KVA shadow:
// the entry code, and what the processor and that code touch before CR3 is the
// kernel's. Every process's user root gets its top-level entries.
func (b *builder) buildShadow() {
	if !b.opts.KVAShadow {
		return
	}
	b.shadow = b.newSpace(b.mem.alloc() << pageShift)
	show := func(va, n uint64) {
		for page := va &^ (pageSize - 1); page < va+n; page += pageSize {
			if pte := b.mem.get64(b.kernel.pteAddress(page)); pte&pteValid != 0 {
				b.shadow.setPTE(page, pte)
			}
		}
	}
	rt := b.image.rt
	show(b.image.runtime+uint64(rt.KVASStart), uint64(rt.KVASEnd-rt.KVASStart))
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
	for i := range uint64(512) {
		from := p.space.dtb
		if i >= 256 {
			from = b.shadow.dtb
		}
		b.mem.put64(p.userRoot<<pageShift+8*i, b.mem.get64(from+8*i))
	}
}
