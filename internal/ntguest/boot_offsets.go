package ntguest

import "fmt"

// offsets resolves the members that the runtime keeps up to date.
func (w *bootWriter) offsets() BootOff {
	off := func(typ string, paths ...string) uint32 {
		if f, ok := w.b.at(typ, 0).field(paths...); ok {
			return f.Offset
		}
		return BootNone
	}
	bit := func(name string) uint32 {
		if f, ok := w.b.at("_EPROCESS", 0).field(name); ok && f.BitCount == 1 {
			return 1 << f.BitOffset
		}
		return 0
	}
	prcb := func(name string) uint32 {
		if o := off("_KPRCB", name); o != BootNone {
			return o + w.b.prcbOffset()
		}
		return BootNone
	}
	shadow := w.b.shadowOffsets()
	return BootOff{
		EpDTB: off("_EPROCESS", "Pcb.DirectoryTableBase"), EpUserDTB: off("_EPROCESS", "Pcb.UserDirectoryTableBase"),
		KpThreadList: off("_EPROCESS", "Pcb.ThreadListHead"), EpThreadList: off("_EPROCESS", "ThreadListHead"),
		EpCreateTime: off("_EPROCESS", "CreateTime"), EpExitTime: off("_EPROCESS", "ExitTime"),
		EpExitStatus: off("_EPROCESS", "ExitStatus"), EpActiveThreads: off("_EPROCESS", "ActiveThreads"),
		EpFlags: off("_EPROCESS", "ProcessExiting"), EpFlagExiting: bit("ProcessExiting"), EpFlagDelete: bit("ProcessDelete"),
		EpObjectTable: off("_EPROCESS", "ObjectTable"),
		EpVADRoot:     w.vadRoot(), EpPEB: off("_EPROCESS", "Peb"),
		KtState: off("_KTHREAD", "State"), KtWaitReason: off("_KTHREAD", "WaitReason"),
		KtContextSwitches: off("_KTHREAD", "ContextSwitches"), KtKernelStack: off("_KTHREAD", "KernelStack"), KtTrapFrame: BootNone,
		KtThreadListEntry: off("_KTHREAD", "ThreadListEntry"), EtThreadListEntry: off("_ETHREAD", "ThreadListEntry"),
		EtExitStatus: off("_ETHREAD", "ExitStatus"), EtExitTime: off("_ETHREAD", "ExitTime"),
		HtTableCode: off("_HANDLE_TABLE", "TableCode"), OhBody: off("_OBJECT_HEADER", "Body"),
		OhPointerCount: off("_OBJECT_HEADER", "PointerCount"), OhHandleCount: off("_OBJECT_HEADER", "HandleCount"),
		PcrCurrentThread: prcb("CurrentThread"), PcrNextThread: prcb("NextThread"),
		PcrKernelDTB: shadow[0], PcrRSPShadow: shadow[1], PcrUserRSPShadow: shadow[2],
	}
}

// vadRoot is where the pointer to the tree's root lies in _EPROCESS: in a tree of
// its own, or until Windows 7 as the right child of the table's node.
func (w *bootWriter) vadRoot() uint32 {
	ep := w.b.at("_EPROCESS", 0)
	if f, ok := ep.field("VadRoot.Root"); ok {
		return f.Offset
	}
	return ep.must("VadRoot").Offset + w.b.at("_MM_AVL_TABLE", 0).must("BalancedRoot.RightChild").Offset
}

// cpus describes the processors, and checks what entry.S takes for granted.
func (w *bootWriter) cpus() {
	b := w.b
	if b.x86() {
		for name, want := range map[string]uint32{"NtTib.StackBase": 0x4, "Number": 0x51} {
			if got := b.at("_KPCR", 0).must(name).Offset; got != want {
				panic(fmt.Errorf("_KPCR.%s is at %#x, the runtime expects %#x", name, got, want))
			}
		}
	} else {
		for name, want := range map[string]uint32{"CurrentThread": 0x188, "Number": 0x1a4, "RspBase": 0x1a8} {
			if got := b.at("_KPRCB", 0).must(name).Offset + b.prcbOffset(); got != want {
				panic(fmt.Errorf("_KPCR.Prcb.%s is at %#x, the runtime expects %#x", name, got, want))
			}
		}
	}
	for i, c := range b.cpus {
		w.boot.CPU[i] = BootCPU{KPCR: c.kpcr, GDT: c.gdt, IDT: c.idt, GDTLimit: gdtLimit, IDTLimit: idtLimit,
			TSS: c.tss, BootStack: c.bootStack, ShadowStack: c.shadowStack}
	}
}
