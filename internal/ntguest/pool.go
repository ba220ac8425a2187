package ntguest

import "encoding/binary"

// Pool types as _POOL_HEADER.PoolType holds them: the POOL_TYPE constant with the
// in-use bit.
const (
	poolNonPaged = 0
	poolPaged    = 1
	poolInUse    = 2
)

// poolTag is a pool tag as it stands in memory.
func poolTag(tag string) uint64 { return uint64(binary.LittleEndian.Uint32([]byte(tag))) }

// poolAlloc allocates n bytes of nonpaged or paged pool behind a _POOL_HEADER. A
// block that does not fit into one page gets pages of its own without a header, as
// the big pool does.
func (b *builder) poolAlloc(n uint64, tag string, paged bool) uint64 {
	header := 2 * b.word()
	a, typ := &b.nonPaged, uint64(poolNonPaged)
	if paged {
		a, typ = &b.paged, poolPaged
	}
	if b.blob != nil {
		a = &b.blob.arena
	}
	size := (n + 2*header - 1) &^ (header - 1)
	if size > pageSize {
		return a.alloc((n+pageSize-1)&^(pageSize-1), pageSize)
	}
	if rest := pageSize - a.next%pageSize; rest < size {
		a.next += rest // a block never crosses a page
	}
	va := a.alloc(size, header)
	h := b.at("_POOL_HEADER", va)
	h.set(size/header, "BlockSize")
	h.set(typ|poolInUse, "PoolType")
	if b.blob != nil {
		// A template is no process yet: the runtime writes the tag of its copy last.
		b.fix(BootFixup{At: va + 4, Kind: FixPoolTag, Value: poolTag(tag)})
	} else {
		h.set(poolTag(tag), "PoolTag")
	}
	return va + header
}

// Optional headers of an object, by their bit in _OBJECT_HEADER.InfoMask. The one
// with the lowest bit lies next to the object header ("Windows Internals", 7th
// edition, part 2, chapter 8).
var infoHeaders = []struct {
	bit uint64
	typ string
}{
	{0x01, "_OBJECT_HEADER_CREATOR_INFO"},
	{0x02, "_OBJECT_HEADER_NAME_INFO"},
	{0x04, "_OBJECT_HEADER_HANDLE_INFO"},
	{0x08, "_OBJECT_HEADER_QUOTA_INFO"},
	{0x10, "_OBJECT_HEADER_PROCESS_INFO"},
}

const (
	infoName  = 0x02
	infoQuota = 0x08
)

// objectType is one OBJECT_TYPE of the guest.
type objectType struct {
	va    uint64
	index uint64
	tag   string
	count uint64
}

// The object types, in the order of their index in ObTypeIndexTable: the first two
// entries of the table are reserved on every build.
var typeNames = []struct{ name, tag string }{
	{"Type", "ObjT"}, {"Directory", "Dire"}, {"SymbolicLink", "Symb"}, {"Token", "Toke"}, {"Job", "Job "},
	{"Process", "Proc"}, {"Thread", "Thre"}, {"Event", "Even"}, {"Mutant", "Muta"}, {"Section", "Sect"},
	{"Key", "Key "}, {"File", "File"}, {"Driver", "Driv"}, {"Device", "Devi"}, {"Desktop", "Desk"}, {"WindowStation", "Wind"},
}

// objectTag is the pool tag of an object's allocation: protected blocks carry the
// top bit of the tag until Windows 8.
func (b *builder) objectTag(tag string) string {
	if b.build.Major >= 10 {
		return tag
	}
	switch tag {
	case "Proc", "Thre", "Driv", "File", "Muta", "Symb":
		raw := []byte(tag)
		raw[3] |= 0x80
		return string(raw)
	}
	return tag
}

// newObject allocates an object of a type with its headers and returns the address
// of its body. A name adds the name header.
func (b *builder) newObject(typ, name string, size, quota uint64) uint64 {
	t := b.types[typ]
	mask := quota
	if name != "" {
		mask |= infoName
	}
	var before uint64
	for _, h := range infoHeaders {
		if mask&h.bit != 0 {
			before += b.sizeof(h.typ)
		}
	}
	headerSize := uint64(b.at("_OBJECT_HEADER", 0).must("Body").Offset)
	block := b.poolAlloc(before+headerSize+size, b.objectTag(t.tag), false)
	va := block + before
	h := b.at("_OBJECT_HEADER", va)
	h.set(3, "PointerCount")
	h.set(1, "HandleCount")
	h.set(mask, "InfoMask")
	if b.blob != nil {
		b.fix(BootFixup{At: h.addr("TypeIndex"), Kind: FixTypeIndex, Arg: uint32(t.index), Value: va})
	}
	h.set(b.encodeTypeIndex(va, t.index), "TypeIndex")
	if name != "" {
		n := b.at("_OBJECT_HEADER_NAME_INFO", va-b.infoOffset(mask, infoName))
		n.ustr(b.poolAlloc(utf16size(name), "ObNm", true), name, "Name")
		n.opt(1, "ReferenceCount", "QueryReferences")
	}
	t.count++
	b.types[typ] = t
	return va + headerSize
}

// infoOffset is how far before the object header an optional header starts.
func (b *builder) infoOffset(mask, bit uint64) uint64 {
	var off uint64
	for _, h := range infoHeaders {
		if mask&h.bit != 0 {
			off += b.sizeof(h.typ)
		}
		if h.bit == bit {
			return off
		}
	}
	return off
}

// encodeTypeIndex hides the index as builds with ObHeaderCookie do: exclusive or
// with the cookie and the second byte of the header's address.
func (b *builder) encodeTypeIndex(header, index uint64) uint64 {
	if _, ok := b.profile.Symbol("ObHeaderCookie"); !ok {
		return index
	}
	return index ^ b.cookie ^ header>>8&0xff
}

// buildTypes makes the OBJECT_TYPE objects and the tables that lead to them.
func (b *builder) buildTypes() {
	b.types = make(map[string]objectType)
	for i, t := range typeNames {
		b.types[t.name] = objectType{index: uint64(i + 2), tag: t.tag}
	}
	for _, t := range typeNames {
		va := b.newObject("Type", t.name, b.sizeof("_OBJECT_TYPE"), 0)
		o := b.at("_OBJECT_TYPE", va)
		b.listInit(b.kernel, o.addr("TypeList"))
		o.ustr(b.poolAlloc(utf16size(t.name), "ObNm", true), t.name, "Name")
		info := b.types[t.name]
		o.set(info.index, "Index")
		o.set(poolTag(t.tag), "Key")
		info.va = va
		b.types[t.name] = info
		b.kernel.put(b.sym("ObTypeIndexTable")+b.word()*info.index, va, b.ptr())
	}
	b.kernel.put(b.sym("ObTypeIndexTable")+b.word(), 0xbad0b0b0, b.ptr()) // index 1 is never used
	if va, ok := b.symbol("ObHeaderCookie"); ok {
		b.kernel.put(va, b.cookie, 1)
	}
	// ObpInfoMaskToOffset: the distance of the header of the highest bit in a mask.
	for mask := uint64(1); mask < 32; mask++ {
		b.kernel.put(b.sym("ObpInfoMaskToOffset")+mask, b.infoOffset(mask, 0), 1)
	}
}

// finishTypes writes the counts once every object exists.
func (b *builder) finishTypes() {
	for _, t := range b.types {
		o := b.at("_OBJECT_TYPE", t.va)
		o.set(t.count, "TotalNumberOfObjects")
		o.set(t.count, "TotalNumberOfHandles")
	}
}
