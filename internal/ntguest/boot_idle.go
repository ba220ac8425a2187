package ntguest

// idleThread makes the thread that a processor runs when nothing else wants to. It
// belongs to the idle process, which is no object and on no list, so that it is an
// ETHREAD without an object header.
func (b *builder) idleThread(c cpu) uint64 {
	va := b.system.alloc(b.sizeof("_ETHREAD"), 64)
	kt := b.at("_KTHREAD", va)
	kt.set(6, "Header.Type") // ThreadObject
	b.listInit(b.kernel, kt.addr("Header.WaitListHead"))
	kt.set(c.bootStack, "InitialStack")
	kt.opt(c.bootStack, "StackBase")
	kt.set(c.bootStack-kernelStack, "StackLimit")
	kt.set(c.bootStack-0x200, "KernelStack")
	kt.set(2, "State") // Running
	if idle, ok := b.symbol("KiInitialProcess"); ok {
		kt.opt(idle, "Process")
	}
	return va
}
