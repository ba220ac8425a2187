package ntguest

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"sort"
	"strings"
)

// kernelImage is ntoskrnl.exe as it lies in memory: headers, the export directory
// and the debug record that readers look for, the global symbols of the build at
// their RVAs, and the runtime's code behind the last of them.
type kernelImage struct {
	base    uint64
	size    uint64
	runtime uint64 // address of rt.bin; 0 without it
	rt      RuntimeHeader
}

// exported are the symbols that the export directory lists, where the build has
// them.
var exported = []string{
	"DbgPrint", "ExAllocatePoolWithTag", "ExFreePoolWithTag", "IoCreateDevice", "IofCompleteRequest", "KeBugCheckEx",
	"KeInitializeEvent", "KeNumberProcessors", "KeSetEvent", "KeWaitForSingleObject", "MmGetSystemRoutineAddress",
	"MmHighestUserAddress", "MmMapIoSpace", "MmSystemRangeStart", "MmUserProbeAddress", "NtBuildGUID", "NtBuildLab",
	"NtBuildNumber", "NtClose", "NtCreateFile", "NtOpenProcess", "NtQuerySystemInformation", "NtReadFile",
	"ObReferenceObjectByHandle", "ObfDereferenceObject", "PsGetCurrentProcessId", "PsGetProcessId",
	"PsInitialSystemProcess", "PsLoadedModuleList", "PsLookupProcessByProcessId", "PsSetCreateProcessNotifyRoutine",
	"RtlInitUnicodeString", "ZwClose", "ZwCreateFile", "memcpy", "memset",
}

// isCode tells code symbols from data by their names' prefixes: the profile does
// not say.
func isCode(name string) bool {
	for _, data := range []string{"KiProcessorBlock", "KiInitialPCR", "KiInitialProcess", "KiKvaShadow", "KiKvaShadowMode", "KiWaitNever", "KiWaitAlways",
		"NtBuild", "NtMajor", "NtMinor", "ObHeaderCookie", "ObTypeIndexTable", "Obp"} {
		if strings.HasPrefix(name, data) && !strings.HasSuffix(name, "Shadow") || name == data {
			return false
		}
	}
	for _, code := range []string{"DbgPrint", "Ex", "Io", "KeBug", "KeInit", "KeSet", "KeWait", "Ki", "MmGet", "MmMap", "Nt", "Zw", "Ob", "PsGet", "PsLookup",
		"PsSet", "Rtl", "mem"} {
		if strings.HasPrefix(name, code) {
			return !strings.HasPrefix(name, "IopRoot") && !strings.HasPrefix(name, "MmPhys")
		}
	}
	return false
}

// dataSpans are the sizes in bytes of symbols that need more than a word.
func (b *builder) dataSpans() map[string]uint64 {
	return map[string]uint64{
		"KiInitialPCR": b.sizeof("_KPCR"), "KdDebuggerDataBlock": 0x400, "NtBuildLab": 64, "NtBuildLabEx": 128,
		"ObTypeIndexTable": b.word() * 64, "ObpInfoMaskToOffset": 256, "KiProcessorBlock": b.word() * 64,
		"MmProtectToValue": 4 * 32, "KdVersionBlock": 0x40, "MiState": b.sizeof("_MI_SYSTEM_INFORMATION"), "CmNtCSDVersion": 8, "CmpHiveListHead": 16,
	}
}

// buildKernel lays the image out. Pages that hold nothing are left out: Windows
// discards and pages out parts of its kernel too.
func (b *builder) buildKernel(rt []byte) error {
	im := &b.image
	im.base = b.kernelBase()
	code, data, mixed := map[uint64]bool{}, map[uint64]bool{}, map[uint64]bool{}
	spans := b.dataSpans()
	var top uint64
	for _, name := range b.profile.Symbols() {
		rva, _ := b.profile.Symbol(name)
		span := max(spans[name], 8)
		for page := rva >> pageShift; page <= (rva+span-1)>>pageShift; page++ {
			if isCode(name) {
				code[page] = true
			} else {
				data[page] = true
			}
		}
		top = max(top, rva+span)
	}
	top = (top + 0xffff) &^ 0xffff
	// The directories lie near the headers, in the first pages without a symbol.
	free := func(pages uint64) uint64 {
		run := uint64(0)
		for page := uint64(1); ; page++ {
			if run++; code[page] || data[page] || mixed[page] {
				run = 0
			}
			if run == pages {
				for i := page + 1 - pages; i <= page; i++ {
					mixed[i] = true
				}
				return (page + 1 - pages) << pageShift
			}
		}
	}
	debugRVA, exportRVA := free(1), free(exportPages)
	rtRVA := top
	if len(rt) > 0 {
		runtime, err := LoadRuntime(rt)
		if err != nil {
			return err
		}
		if err := b.patchRuntime(runtime); err != nil {
			return err
		}
		im.rt, rt = runtime.RuntimeHeader, runtime.Image
		top += uint64(im.rt.MemorySize+pageSize-1) &^ (pageSize - 1)
		im.runtime = im.base + rtRVA
	}
	im.size = top
	for page := range code {
		if data[page] {
			delete(data, page)
			mixed[page] = true
		}
	}
	header := map[uint64]bool{0: true, debugRVA >> pageShift: true}
	for i := range uint64(exportPages) {
		header[exportRVA>>pageShift+i] = true
	}
	for page := range header {
		delete(mixed, page)
	}
	for page := range mixed {
		delete(code, page)
	}
	b.mapSet(header, im.base, pteNX|pteGlobal)
	b.mapSet(data, im.base, pteWrite|pteDirty|pteNX|pteGlobal)
	b.mapSet(code, im.base, pteGlobal)
	b.mapSet(mixed, im.base, pteWrite|pteDirty|pteGlobal)
	for _, name := range b.profile.Symbols() {
		if rva, _ := b.profile.Symbol(name); isCode(name) {
			b.kernel.write(im.base+rva, []byte{0xc3}) // ret
		}
	}
	b.placeRuntime(rt, rtRVA)
	b.writeKernelHeaders(exportRVA, debugRVA, rtRVA)
	b.writeExports(exportRVA)
	b.writeDebug(debugRVA)
	return nil
}

// placeRuntime maps the runtime's code and data behind the symbols.
func (b *builder) placeRuntime(rt []byte, rva uint64) {
	if len(rt) == 0 {
		return
	}
	h := b.image.rt
	for off := uint64(0); off < uint64(h.MemorySize); off += pageSize {
		bits := uint64(pteGlobal)
		if off >= uint64(h.DataOffset) {
			bits |= pteWrite | pteDirty | pteNX
		}
		b.kernel.mapFrame(b.image.base+rva+off, b.mem.alloc(), bits)
	}
	b.kernel.write(b.image.base+rva, rt[:h.ImageSize])
}

// mapSet maps a frame for each page of a set at base, in the order of the pages.
func (b *builder) mapSet(pages map[uint64]bool, base, bits uint64) {
	sorted := make([]uint64, 0, len(pages))
	for p := range pages {
		sorted = append(sorted, p)
	}
	sort.Slice(sorted, func(i, j int) bool { return sorted[i] < sorted[j] })
	for _, p := range sorted {
		b.kernel.mapFrame(base+p<<pageShift, b.mem.alloc(), bits)
	}
}

// Offsets of the PE headers (Microsoft, "PE Format").
const (
	peOffset     = 0xf8
	peOptional   = peOffset + 24
	peTimestamp  = 0x5f3a1c27
	exportPages  = 4
	dirExport    = 0
	dirDebug     = 6
	scnCode      = 0x68000020 // code, not paged, executable, readable
	scnData      = 0xc8000040
	debugTypeRSD = 2 // IMAGE_DEBUG_TYPE_CODEVIEW
)

// machineType is what a PE header says that the guest's code is for.
func (b *builder) machineType() uint16 {
	if b.x86() {
		return 0x14c
	}
	return 0x8664
}

// kernelBase is where the kernel's image lies: at random since Windows 10, at the end of what
// the loader has used before.
func (b *builder) kernelBase() uint64 {
	switch {
	case b.x86():
		return b.kernelBase32()
	case b.build.Major < 10:
		return 0xfffff80002000000 + b.rng.Uint64N(1<<9)<<12
	}
	return 0xfffff80000000000 + b.rng.Uint64N(1<<10)<<21
}

func (b *builder) writeKernelHeaders(exportRVA, debugRVA, rtRVA uint64) {
	h := make([]byte, pageSize)
	le := binary.LittleEndian
	copy(h, "MZ")
	le.PutUint32(h[0x3c:], peOffset)
	copy(h[peOffset:], "PE\x00\x00")
	le.PutUint16(h[peOffset+4:], b.machineType())
	le.PutUint32(h[peOffset+8:], peTimestamp+uint32(b.build.Number))
	optional := uint64(240)
	if b.x86() {
		optional = 224
	}
	directory, sectionTable := peOptional+optional-128, peOptional+optional
	le.PutUint16(h[peOffset+20:], uint16(optional))
	le.PutUint16(h[peOffset+22:], 0x22)
	o := h[peOptional:]
	le.PutUint16(o, 0x20b)
	le.PutUint32(o[16:], uint32(rtRVA)) // entry point
	le.PutUint32(o[20:], 0x1000)
	le.PutUint64(o[24:], b.image.base)
	if b.x86() {
		le.PutUint16(o, 0x10b)
		le.PutUint32(o[24:], 0x1000) // BaseOfData
		le.PutUint32(o[28:], uint32(b.image.base))
		le.PutUint16(h[peOffset+22:], 0x102)
	}
	le.PutUint32(o[32:], pageSize)
	le.PutUint32(o[36:], 0x200)
	for _, off := range []int{40, 44, 48} { // OS, image and subsystem versions
		le.PutUint16(o[off:], uint16(b.build.Major))
		le.PutUint16(o[off+2:], uint16(b.build.Minor))
	}
	le.PutUint32(o[56:], uint32(b.image.size))
	le.PutUint32(o[60:], 0x400)
	le.PutUint16(o[68:], 1) // native
	le.PutUint32(h[directory-4:], 16)
	le.PutUint32(h[directory+8*dirExport:], uint32(exportRVA))
	le.PutUint32(h[directory+8*dirExport+4:], 0x4000)
	le.PutUint32(h[directory+8*dirDebug:], uint32(debugRVA))
	le.PutUint32(h[directory+8*dirDebug+4:], 28)
	sections := []struct {
		name       string
		start, end uint64
		flags      uint32
	}{
		{".text", 0x1000, rtRVA, scnCode | 0x80000000},
	}
	if b.image.runtime != 0 {
		data := rtRVA + uint64(b.image.rt.DataOffset)
		sections = append(sections, struct {
			name       string
			start, end uint64
			flags      uint32
		}{"POOLCODE", rtRVA, data, scnCode})
		if data < b.image.size {
			sections = append(sections, struct {
				name       string
				start, end uint64
				flags      uint32
			}{".data", data, b.image.size, scnData})
		}
	}
	le.PutUint16(h[peOffset+6:], uint16(len(sections)))
	raw := uint64(0x400)
	for i, s := range sections {
		e := h[sectionTable+40*uint64(i):]
		copy(e[:8], s.name)
		le.PutUint32(e[8:], uint32(s.end-s.start))
		le.PutUint32(e[12:], uint32(s.start))
		le.PutUint32(e[16:], uint32(s.end-s.start))
		le.PutUint32(e[20:], uint32(raw))
		le.PutUint32(e[36:], s.flags)
		raw += s.end - s.start
	}
	b.kernel.write(b.image.base, h)
}

// writeExports makes a true export directory: names sorted, ordinals, RVAs.
func (b *builder) writeExports(rva uint64) {
	var names []string
	for _, name := range exported {
		if _, ok := b.profile.Symbol(name); ok {
			names = append(names, name)
		}
	}
	sort.Strings(names)
	le := binary.LittleEndian
	n := uint64(len(names))
	dir := make([]byte, 0x4000)
	functions, nameTable, ordinals := uint64(40), 40+4*n, 40+8*n
	text := 40 + 10*n
	put := func(s string) uint32 {
		at := text
		copy(dir[at:], s)
		text += uint64(len(s)) + 1
		return uint32(rva + at)
	}
	le.PutUint32(dir[4:], peTimestamp)
	le.PutUint32(dir[12:], put("ntoskrnl.exe"))
	le.PutUint32(dir[16:], 1)
	le.PutUint32(dir[20:], uint32(n))
	le.PutUint32(dir[24:], uint32(n))
	le.PutUint32(dir[28:], uint32(rva+functions))
	le.PutUint32(dir[32:], uint32(rva+nameTable))
	le.PutUint32(dir[36:], uint32(rva+ordinals))
	for i, name := range names {
		sym, _ := b.profile.Symbol(name)
		le.PutUint32(dir[functions+4*uint64(i):], uint32(sym))
		le.PutUint32(dir[nameTable+4*uint64(i):], put(name))
		le.PutUint16(dir[ordinals+2*uint64(i):], uint16(i))
	}
	b.kernel.write(b.image.base+rva, dir)
}

// writeDebug makes the debug directory and the CodeView record it points to.
func (b *builder) writeDebug(rva uint64) {
	le := binary.LittleEndian
	id := b.build.Identity
	record := append([]byte("RSDS"), guidBytes(id.GUID)...)
	record = le.AppendUint32(record, id.Age)
	record = append(append(record, id.PDB...), 0)
	dir := make([]byte, 28)
	le.PutUint32(dir[4:], peTimestamp)
	le.PutUint32(dir[12:], debugTypeRSD)
	le.PutUint32(dir[16:], uint32(len(record)))
	le.PutUint32(dir[20:], uint32(rva+0x40))
	le.PutUint32(dir[24:], uint32(rva+0x40))
	b.kernel.write(b.image.base+rva, dir)
	b.kernel.write(b.image.base+rva+0x40, record)
}

// guidBytes turns the printed form into the one in memory: the first three parts
// are little-endian.
func guidBytes(text string) []byte {
	g, err := hex.DecodeString(text)
	if err != nil || len(g) != 16 {
		panic(fmt.Errorf("GUID %q", text))
	}
	return []byte{g[3], g[2], g[1], g[0], g[5], g[4], g[7], g[6], g[8], g[9], g[10], g[11], g[12], g[13], g[14], g[15]}
}
