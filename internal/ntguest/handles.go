package ntguest

import "fmt"

// handleTable is one _HANDLE_TABLE being filled: a page of entries for each 256
// handles (512 on x86), and a page of pointers to those where there is more than one.
type handleTable struct {
	b     *builder
	va    uint64
	pages []uint64
	count uint64
}

// handlesPerPage is how many entries of two words fill a page.
func (b *builder) handlesPerPage() uint64 { return pageSize / (2 * b.word()) }

// newHandleTable makes a table for up to n*256 handles. Entry 0 of every page is
// never used.
func (b *builder) newHandleTable(pid uint64, n int) *handleTable {
	t := &handleTable{b: b, va: b.poolAlloc(b.sizeof("_HANDLE_TABLE"), "Obtb", true)}
	for range n {
		t.pages = append(t.pages, b.poolAlloc(pageSize, "Obtb", true))
	}
	o := b.at("_HANDLE_TABLE", t.va)
	code := t.pages[0]
	if n > 1 {
		if uint64(n) > pageSize/b.word() {
			panic(fmt.Errorf("a handle table of %d pages", n))
		}
		top := b.poolAlloc(pageSize, "Obtb", true)
		for i, p := range t.pages {
			o.ptr(top+b.word()*uint64(i), p)
		}
		code = top | 1
	}
	o.set(code, "TableCode")
	o.set(pid, "UniqueProcessId")
	b.listInit(b.kernel, o.addr("HandleTableList"))
	return t
}

// set makes handle refer to an address: an object's header in a process's table,
// its body in the table of client ids.
func (t *handleTable) set(handle, to, access uint64) {
	per := t.b.handlesPerPage()
	entry := t.pages[handle/4/per] + handle/4%per*2*t.b.word()
	o := object{b: t.b, s: t.b.kernel}
	switch {
	case t.b.packedHandles() && !t.b.x86():
		// _HANDLE_TABLE_ENTRY: Unlocked, reference count and attributes, then the address
		// without its four low bits: up to bit 47, or in the kernel for 57-bit addresses 56.
		t.b.kernel.put(entry, to<<t.b.handleShift()|1, 8)
		if t.b.blob != nil && t.b.inBlob(to) {
			t.b.fix(BootFixup{At: entry, Kind: FixRelocCID})
		}
	default:
		// Bit 0: not locked. 32-bit builds leave the address in its place, packed or not.
		o.ptr(entry, to|1)
	}
	t.b.kernel.put(entry+t.b.word(), access, 4)
	t.count++
	th := t.b.at("_HANDLE_TABLE", t.va)
	th.opt(t.count, "HandleCount")
	th.opt(handle+4, "NextHandleNeedingPool")
}

// packedHandles tells whether handle table entries hold a shifted address.
func (b *builder) packedHandles() bool {
	_, err := b.profile.Field("_HANDLE_TABLE_ENTRY", "ObjectPointerBits")
	return err == nil
}

// handleShift is by how many bits the address in a packed entry is shifted, counted with its
// four low bits.
func (b *builder) handleShift() uint {
	return uint(b.at("_HANDLE_TABLE_ENTRY", 0).must("ObjectPointerBits").BitOffset) - 4
}
