package ntguest

// driver is one entry of the loaded module list.
type driver struct {
	name, path string
	base, size uint64
	object     uint64
	file       *peFile
	held       []bool // pages that are in memory; nil for all
}

// driverFiles32 are the same of a 32-bit guest, for which no Debian package has drivers.
var driverFiles32 = []struct{ name, file string }{
	{"hal.dll", "libssp-0.dll"}, {"fltMgr.sys", "libatomic-1.dll"}, {"ksecdd.sys", "libgcc_s_dw2-1.dll"}, {"NDIS.SYS", "libquadmath-0.dll"},
	{"tdi.sys", "libwinpthread-1.dll"}, {"HTTP.sys", "libgomp-1.dll"}, {"mup.sys", "zlib1.dll"}, {"USBD.SYS", "libobjc-4.dll"},
}

func (b *builder) driverFiles() []struct{ name, file string } {
	if b.x86() {
		return driverFiles32
	}
	return driverFiles64
}

// driverFiles64 are mapped as drivers: files of Debian's libwine, which has kernel
// drivers of its own, and programs of the guest's kind in the place of others.
var driverFiles64 = []struct{ name, file string }{
	{"hal.dll", "hal.dll"}, {"fltMgr.sys", "fltmgr.sys"}, {"ksecdd.sys", "ksecdd.sys"}, {"cng.sys", "cng.sys"},
	{"NDIS.SYS", "ndis.sys"}, {"NETIO.SYS", "netio.sys"}, {"mountmgr.sys", "mountmgr.sys"}, {"tdi.sys", "tdi.sys"},
	{"nsiproxy.sys", "nsiproxy.sys"}, {"hidclass.sys", "hidclass.sys"}, {"hidparse.sys", "hidparse.sys"},
	{"USBD.SYS", "usbd.sys"}, {"HTTP.sys", "http.sys"}, {"scsiport.sys", "scsiport.sys"},
}

// buildDrivers maps the drivers and makes the loaded module list, the kernel first.
func (b *builder) buildDrivers() {
	head := b.sym("PsLoadedModuleList")
	b.listInit(b.kernel, head)
	b.addModule(driver{name: "ntoskrnl.exe", path: `\SystemRoot\system32\ntoskrnl.exe`, base: b.image.base, size: b.image.size}, b.image.base+0x1000)
	space := arena{s: b.kernel, bits: pteGlobal}
	space.next = b.image.base + (b.image.size+1<<21)&^(1<<21-1) + 1<<21
	for _, d := range b.driverFiles() {
		path, err := b.files.hostPath(d.file, false)
		if err != nil {
			panic(err)
		}
		f := b.files.parsed[path]
		size := uint64(len(f.lay()))
		base := space.next + b.rng.Uint64N(16)<<16
		space.next = (base + size + 0xffff) &^ 0xffff
		img := f.relocated(base)
		var held []bool
		for off := uint64(0); off < size; off += pageSize {
			bits := uint64(pteGlobal)
			switch f.protAt(off / pageSize) {
			case mmReadOnly:
				bits |= pteNX
			case mmWriteCopy:
				bits |= pteNX | pteWrite | pteDirty
			}
			if b.opts.Trim > 0 {
				held = append(held, b.trimDriver(f, img, base, off, bits))
				continue
			}
			pfn := b.mem.alloc()
			copy(b.mem.frame(pfn)[:], img[off:])
			b.kernel.mapFrame(base+off, pfn, bits)
		}
		dir := `\SystemRoot\System32\drivers\`
		if d.name == "hal.dll" {
			dir = `\SystemRoot\system32\`
		}
		m := driver{name: d.name, path: dir + d.name, base: base, size: size, file: f, held: held}
		entry := b.addModule(m, base+f.entry)
		short := d.name[:len(d.name)-4]
		m.object = b.newObject("Driver", short, b.sizeof("_DRIVER_OBJECT"), 0)
		o := b.at("_DRIVER_OBJECT", m.object)
		o.set(4, "Type") // IO_TYPE_DRIVER
		o.set(b.sizeof("_DRIVER_OBJECT"), "Size")
		o.set(base, "DriverStart")
		o.set(size, "DriverSize")
		o.set(entry, "DriverSection")
		o.set(base+f.entry, "DriverInit")
		name := `\Driver\` + short
		o.ustr(b.poolAlloc(utf16size(name), "Driv", true), name, "DriverName")
	}
}

// trimDriver maps a page of a driver or not, as a kernel does: sections that are needed
// at start only are freed after it, the others are paged out and in. It says whether
// the page is in memory.
func (b *builder) trimDriver(f *peFile, img []byte, base, off, bits uint64) bool {
	const discardable = 0x02000000
	for _, s := range f.sections {
		if s.flags&discardable != 0 && off >= s.rva && off < s.rva+max(s.vsize, s.rawSize) {
			return false
		}
	}
	prot := f.protAt(off / pageSize)
	if b.trims(off/pageSize) && b.rng.Uint64N(2) == 0 {
		b.kernel.setPTE(base+off, b.pagefilePTE(0x1000+b.rng.Uint64N(1<<16), prot))
		return false
	}
	pfn := b.mem.alloc()
	copy(b.mem.frame(pfn)[:], img[off:])
	if b.trims(off / pageSize) {
		b.kernel.setPTE(base+off, b.transition(pfn, prot))
	} else {
		b.kernel.mapFrame(base+off, pfn, bits)
	}
	return true
}

// addModule appends a KLDR_DATA_TABLE_ENTRY to the loaded module list.
func (b *builder) addModule(d driver, entryPoint uint64) uint64 {
	typ := "_KLDR_DATA_TABLE_ENTRY"
	if b.sizeof(typ) == 0 {
		typ = "_LDR_DATA_TABLE_ENTRY"
	}
	va := b.poolAlloc(b.sizeof(typ), "MmLd", false)
	o := b.at(typ, va)
	o.set(d.base, "DllBase")
	o.set(entryPoint, "EntryPoint")
	o.set(d.size, "SizeOfImage")
	o.ustr(b.poolAlloc(utf16size(d.path), "MmLd", true), d.path, "FullDllName")
	o.ustr(b.poolAlloc(utf16size(d.name), "MmLd", true), d.name, "BaseDllName")
	o.set(0x09004000, "Flags")
	o.set(1, "LoadCount")
	b.listAppend(b.kernel, b.sym("PsLoadedModuleList"), o.addr("InLoadOrderLinks"))
	b.drivers = append(b.drivers, d)
	return va
}
