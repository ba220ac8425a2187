package ntguest

import (
	"sort"
)

// vadSpec is one range of a process's user address space.
type vadSpec struct {
	start, end uint64 // bytes; end exclusive
	prot       int
	private    bool
	image      *image
	commit     uint64 // pages
}

// userSpace is the user half of one process under construction.
type userSpace struct {
	b       *builder
	s       *space
	vads    []vadSpec
	regions []BootRegion
	absent  []uint64        // pages of images that are not mapped
	own     map[uint64]bool // pages of images with a copy of the process's own: whether it is in memory
	heap    userArena
}

// userArena hands out memory of a private range.
type userArena struct {
	u         *userSpace
	next, end uint64
}

// private maps zeroed private pages at [start, end).
func (u *userSpace) private(start, end uint64) {
	for va := start; va < end; va += pageSize {
		u.s.mapFrame(va, u.b.mem.alloc(), pteUser|pteWrite|pteDirty|pteNX)
	}
}

// vad notes a range that gets a VAD.
func (u *userSpace) vad(v vadSpec) { u.vads = append(u.vads, v) }

// region notes what the pages of a range are to the runtime.
func (u *userSpace) region(start, end uint64, kind uint32, prot int) {
	u.regions = append(u.regions, BootRegion{Start: start, End: end, Kind: kind, Prot: pageProtect[prot]})
}

// alloc returns the address of n zeroed bytes of the process's heap.
func (a *userArena) alloc(n uint64) uint64 {
	va := (a.next + 15) &^ 15
	if va+n > a.end {
		panic("the process's first heap is full")
	}
	a.next = va + n
	return va
}

// ustr makes the UNICODE_STRING at an address, over a copy of text in the process's
// heap; ustr32 a 32-bit one.
func (u *userSpace) ustr(at uint64, text string) { u.ustrOf(at, text, u.b.ptr()) }

func (u *userSpace) ustr32(at uint64, text string) { u.ustrOf(at, text, 4) }

func (u *userSpace) ustrOf(at uint64, text string, ptr uint32) {
	raw := utf16le(text)
	buf := u.heap.alloc(uint64(len(raw) + 2))
	u.s.write(buf, raw)
	u.s.put(at, uint64(len(raw)), 2)
	u.s.put(at+2, uint64(len(raw)+2), 2)
	u.s.put(at+uint64(ptr), buf, ptr)
}

// mapImage maps an image with the pages its processes share and, for those the
// loader wrote, copies of its own.
func (u *userSpace) mapImage(im *image) {
	u.b.files.bind(im)
	for i, pfn := range im.frames {
		page := uint64(i)
		va := im.base + page*pageSize
		prot := im.file.protAt(page)
		bits := uint64(pteUser)
		if prot == mmReadOnly || prot == mmWriteCopy {
			bits |= pteNX
		}
		if im.private[page] {
			own := u.b.mem.alloc()
			copy(u.b.mem.frame(own)[:], im.bound[page*pageSize:])
			if u.trimPrivate(im, page, own, prot) {
				continue
			}
			if prot == mmWriteCopy || prot == mmExecuteWriteCopy {
				bits |= pteWrite
			}
			u.own[va] = true
			u.s.mapFrame(va, own, bits|pteDirty)
			continue
		}
		if u.b.leaveOut(im, page) {
			u.leaveOutPTE(im, page)
			continue
		}
		if prot == mmWriteCopy || prot == mmExecuteWriteCopy {
			bits |= pteCOW
		}
		u.s.mapFrame(va, pfn, bits)
	}
	u.vad(vadSpec{start: im.base, end: im.base + uint64(len(im.content)), prot: mmExecuteWriteCopy, image: im})
	for _, s := range im.file.spans() {
		if s.start < s.end {
			u.regions = append(u.regions, BootRegion{Start: im.base + s.start*pageSize, End: im.base + s.end*pageSize,
				Kind: RegionImage, Prot: pageProtect[s.prot], Segment: uint32(im.segment), FirstPage: uint32(s.start)})
		}
	}
}

// writeVADs builds the tree of address space descriptors, balanced, in the form of
// the build: MM_AVL_TABLE until Windows 7, RTL_AVL_TREE later.
func (u *userSpace) writeVADs(eprocess uint64) {
	b := u.b
	sort.Slice(u.vads, func(i, j int) bool { return u.vads[i].start < u.vads[j].start })
	nodes := make([]uint64, len(u.vads))
	for i, v := range u.vads {
		nodes[i] = u.newVAD(v, eprocess)
	}
	_, modern := b.at("_MMVAD_SHORT", 0).field("VadNode")
	ep := b.at("_EPROCESS", eprocess)
	if modern {
		ep.set(b.linkTree(nodes, 0, true), "VadRoot.Root")
		ep.opt(uint64(len(nodes)), "VadCount")
		return
	}
	// The root of the tree is the right child of the table's own node.
	table := ep.addr("VadRoot")
	root := b.linkTree(nodes, table, false)
	b.at("_MM_AVL_TABLE", table).set(root, "BalancedRoot.RightChild")
	b.at("_MM_AVL_TABLE", table).set(uint64(len(nodes)), "NumberGenericTableElements")
}

// linkTree links nodes in order into a balanced tree under parent and returns its
// root.
func (b *builder) linkTree(nodes []uint64, parent uint64, modern bool) uint64 {
	if len(nodes) == 0 {
		return 0
	}
	mid := len(nodes) / 2
	root := nodes[mid]
	left, right := b.linkTree(nodes[:mid], root, modern), b.linkTree(nodes[mid+1:], root, modern)
	if modern {
		o := b.at("_RTL_BALANCED_NODE", root)
		o.set(left, "Left")
		o.set(right, "Right")
		o.set(parent, "ParentValue")
	} else {
		o := b.at("_MMADDRESS_NODE", root)
		o.set(left, "LeftChild")
		o.set(right, "RightChild")
		o.set(parent, "u1.Parent")
	}
	return root
}

func (u *userSpace) newVAD(v vadSpec, eprocess uint64) uint64 {
	b := u.b
	typ, tag := "_MMVAD_SHORT", "VadS"
	if v.image != nil {
		typ, tag = "_MMVAD", "Vad "
	}
	va := b.poolAlloc(b.sizeof(typ), tag, false)
	o := b.at(typ, va)
	core := o
	if _, ok := o.field("Core"); ok {
		core = b.at("_MMVAD_SHORT", o.addr("Core"))
	}
	first, last := v.start>>pageShift, v.end>>pageShift-1
	if _, ok := core.field("StartingVpnHigh"); ok {
		core.set(first&0xffffffff, "StartingVpn")
		core.set(last&0xffffffff, "EndingVpn")
		core.set(first>>32, "StartingVpnHigh")
		core.set(last>>32, "EndingVpnHigh")
	} else {
		core.set(first, "StartingVpn")
		core.set(last, "EndingVpn")
	}
	flags := b.at("_MMVAD_FLAGS", core.addr("u.VadFlags"))
	flags.set(uint64(v.prot), "Protection")
	if v.private {
		flags.set(1, "PrivateMemory")
	}
	commit := flags // until Windows 7; then in a word of its own, which since 26100 has no flags
	if _, ok := core.field("CommitCharge"); ok {
		commit = core
	} else if _, ok := flags.field("CommitCharge"); !ok {
		commit = b.at("_MMVAD_FLAGS1", core.addr("u1.VadFlags1"))
	}
	commit.set(v.commit, "CommitCharge")
	if v.private && v.commit > 0 {
		commit.opt(1, "MemCommit")
	}
	if v.image == nil {
		return va
	}
	flags.set(2, "VadType") // VadImageMap
	pages := uint64(len(v.image.content)) / pageSize
	o.set(v.image.controlArea+b.sizeof("_CONTROL_AREA"), "Subsection")
	o.set(v.image.proto, "FirstPrototypePte")
	o.set(v.image.proto+b.pte*(pages-1), "LastContiguousPte")
	o.opt(eprocess, "VadsProcess")
	b.listInit(b.kernel, o.addr("ViewLinks"))
	return va
}
