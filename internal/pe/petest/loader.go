// Package petest maps PE files the way Windows does, for tests of the way back.
//
// It shares no code with internal/pe and imports nothing of the project: it is
// written from the loader's side (the file is trusted, every step changes the
// image), so that an error in one is not repeated in the other.
package petest

import (
	"encoding/binary"
	"fmt"
	"math/rand"
)

// Export is what a fake address stands for.
type Export struct {
	Module, Name string
	Ordinal      uint16
}

// Loader maps files one after the other and hands out the addresses of the
// exports they import.
type Loader struct {
	Rand *rand.Rand
	// ResolveDelay says that delay-load slots are resolved, as if the program had
	// called them.
	ResolveDelay bool
	// Widen says that .NET programs are loaded into a 64-bit process.
	Widen bool

	byName map[Export]uint64
	byAddr map[uint64]Export
}

// Mapped is a file mapped at Base.
type Mapped struct {
	Base    uint64
	Mem     []byte
	Section []byte // Mem as a section object holds it: relocated, and written to by no process
	Is64    bool

	// What the loader found to do, for tests to know what they covered.
	Relocated, Imports, Ordinals, Delay, Forward, Guards int
	Cookie                                               bool

	nt   int
	file []byte
}

// Address returns the address of an export, always the same for the same one.
func (l *Loader) Address(e Export, is64 bool) uint64 {
	if l.byName == nil {
		l.byName, l.byAddr = map[Export]uint64{}, map[uint64]Export{}
	}
	if a, ok := l.byName[e]; ok && (a>>32 != 0) == is64 {
		return a
	}
	a := uint64(0x77000000) + uint64(len(l.byAddr))*16
	if is64 {
		a += 0x7ff800000000
	}
	l.byName[e], l.byAddr[a] = a, e
	return a
}

// Lookup is the inverse of Address.
func (l *Loader) Lookup(a uint64) (Export, bool) {
	e, ok := l.byAddr[a]
	return e, ok
}

func (m *Mapped) u16(rva int) int    { return int(binary.LittleEndian.Uint16(m.Mem[rva:])) }
func (m *Mapped) u32(rva int) int    { return int(binary.LittleEndian.Uint32(m.Mem[rva:])) }
func (m *Mapped) u64(rva int) uint64 { return binary.LittleEndian.Uint64(m.Mem[rva:]) }

func (m *Mapped) ptr(rva int) uint64 {
	if m.Is64 {
		return m.u64(rva)
	}
	return uint64(uint32(m.u32(rva)))
}

func (m *Mapped) setPtr(rva int, v uint64) {
	if m.Is64 {
		binary.LittleEndian.PutUint64(m.Mem[rva:], v)
	} else {
		binary.LittleEndian.PutUint32(m.Mem[rva:], uint32(v))
	}
}

func (m *Mapped) ptrSize() int {
	if m.Is64 {
		return 8
	}
	return 4
}

func (m *Mapped) dir(i int) (rva, size int) {
	first, count := 96, 92
	if m.Is64 {
		first, count = 112, 108
	}
	if i >= m.u32(m.nt+24+count) {
		return 0, 0
	}
	at := m.nt + 24 + first + 8*i
	return m.u32(at), m.u32(at + 4)
}

func (m *Mapped) str(rva int) string {
	end := rva
	for m.Mem[end] != 0 {
		end++
	}
	return string(m.Mem[rva:end])
}

// Base returns a random base an image of this kind could be given.
func (l *Loader) Base(is64 bool) uint64 {
	if is64 {
		return 0x7ff600000000 + uint64(l.Rand.Intn(0x1ff00))<<16
	}
	return 0x01000000 + uint64(l.Rand.Intn(0x6000))<<16
}

// Map maps file at base, or at its preferred base if it cannot move. Files that
// Windows would not load give an error.
func (l *Loader) Map(file []byte, base uint64) (m *Mapped, err error) {
	defer func() {
		// The file contradicts itself somewhere: not an image.
		if p := recover(); p != nil {
			m, err = nil, fmt.Errorf("map: %v", p)
		}
	}()
	if len(file) < 0x40 || string(file[:2]) != "MZ" {
		return nil, fmt.Errorf("map: no MZ")
	}
	m = &Mapped{file: file, Mem: file}
	m.nt = m.u32(0x3c)
	if string(file[m.nt:m.nt+4]) != "PE\x00\x00" {
		return nil, fmt.Errorf("map: no PE")
	}
	switch magic := m.u16(m.nt + 24); magic {
	case 0x20b:
		m.Is64 = true
	case 0x10b:
	default:
		return nil, fmt.Errorf("map: magic %#x", magic)
	}
	m.layOut()
	baseAt := m.nt + 24 + 28
	if m.Is64 {
		baseAt = m.nt + 24 + 24
	}
	preferred := m.ptr(baseAt)
	m.Base = base
	if relocs, _ := m.dir(5); m.u16(m.nt+22)&1 != 0 || relocs == 0 && m.u16(m.nt+24+70)&0x40 == 0 {
		m.Base = preferred
	}
	m.relocate(m.Base - preferred)
	m.setPtr(baseAt, m.Base)
	m.Section = append([]byte(nil), m.Mem...)
	l.bind(m)
	l.bindDelayed(m)
	l.configure(m)
	if clr, _ := m.dir(14); l.Widen && clr != 0 && !m.Is64 {
		m.widen()
	}
	return m, nil
}

// widen turns the headers of a .NET program into PE32+, as 64-bit loaders do.
func (m *Mapped) widen() {
	le := binary.LittleEndian
	count, opt := m.u16(m.nt+6), m.nt+24
	old := append([]byte(nil), m.Mem[opt:opt+0xe0+40*count]...)
	n := m.Mem[opt : opt+0xf0+40*count]
	le.PutUint16(m.Mem[m.nt+20:], 0xf0)
	le.PutUint16(n, 0x20b)
	le.PutUint64(n[24:], uint64(le.Uint32(old[28:])))
	for i := 0; i < 4; i++ {
		le.PutUint64(n[72+8*i:], uint64(le.Uint32(old[72+4*i:])))
	}
	le.PutUint32(n[104:], le.Uint32(old[88:]))
	le.PutUint32(n[108:], 16)
	clear(n[112:0xf0])
	for _, i := range []int{2, 4, 5, 6, 14} {
		copy(n[112+8*i:], old[96+8*i:96+8*i+8])
	}
	copy(n[0xf0:], old[0xe0:])
	m.Is64 = true
}

// layOut makes the image: headers, sections, zeros for the rest.
func (m *Mapped) layOut() {
	align, size := m.u32(m.nt+24+32), (m.u32(m.nt+24+56)+0xfff)&^0xfff
	count, table := m.u16(m.nt+6), m.nt+24+m.u16(m.nt+20)
	headers := m.u32(m.nt + 24 + 60)
	file := m.file
	mem := make([]byte, size)
	if align < 0x1000 {
		copy(mem, file)
		m.Mem = mem
		return
	}
	copy(mem, file[:min(headers, len(file))])
	for i := 0; i < count; i++ {
		s := table + 40*i
		vsize, rva, raw, at := m.u32(s+8), m.u32(s+12), m.u32(s+16), m.u32(s+20)
		if vsize == 0 {
			vsize = raw
		}
		if raw == 0 || at == 0 {
			continue
		}
		at &^= 0x1ff
		n := min(raw, (vsize+0xfff)&^0xfff)
		copy(mem[rva:rva+n], file[min(at, len(file)):min(at+n, len(file))])
	}
	m.Mem = mem
}

// relocate adds delta to everything the relocation table names.
func (m *Mapped) relocate(delta uint64) {
	at, size := m.dir(5)
	for end := at + size; at != 0 && at+8 <= end; {
		page, n := m.u32(at), m.u32(at+4)
		if n < 8 {
			return
		}
		for e := at + 8; e+2 <= at+n; e += 2 {
			v := m.u16(e)
			rva := page + v&0xfff
			switch v >> 12 {
			case 0:
			case 1:
				binary.LittleEndian.PutUint16(m.Mem[rva:], uint16((uint64(m.u16(rva))<<16+delta)>>16))
			case 2:
				binary.LittleEndian.PutUint16(m.Mem[rva:], uint16(uint64(m.u16(rva))+delta))
			case 3:
				binary.LittleEndian.PutUint32(m.Mem[rva:], uint32(uint64(m.u32(rva))+delta))
			case 4:
				e += 2
				v := uint64(m.u16(rva))<<16 + uint64(int64(int16(m.u16(e)))) + delta + 0x8000
				binary.LittleEndian.PutUint16(m.Mem[rva:], uint16(v>>16))
			case 10:
				binary.LittleEndian.PutUint64(m.Mem[rva:], m.u64(rva)+delta)
			default:
				panic(fmt.Sprintf("relocation type %d", v>>12))
			}
			m.Relocated++
		}
		at += n
	}
}

// thunk decodes one entry of an import name table.
func (m *Mapped) thunk(module string, v uint64) Export {
	if v>>(8*m.ptrSize()-1) != 0 {
		m.Ordinals++
		return Export{Module: module, Ordinal: uint16(v)}
	}
	return Export{Module: module, Name: m.str(int(v) + 2)}
}

// bind fills the import address tables.
func (l *Loader) bind(m *Mapped) {
	at, _ := m.dir(1)
	for ; at != 0 && m.u32(at+12) != 0 && m.u32(at+16) != 0; at += 20 {
		module := m.str(m.u32(at + 12))
		names, addrs := m.u32(at), m.u32(at+16)
		if names == 0 {
			names = addrs
		}
		for ; m.ptr(names) != 0; names, addrs = names+m.ptrSize(), addrs+m.ptrSize() {
			e := m.thunk(module, m.ptr(names))
			m.setPtr(addrs, l.Address(e, m.Is64))
			m.Imports++
		}
	}
}

// bindDelayed resolves every other delay-load slot, as a program does that has
// called some of them.
func (l *Loader) bindDelayed(m *Mapped) {
	at, _ := m.dir(13)
	if at == 0 || !l.ResolveDelay {
		return
	}
	for ; m.u32(at+4) != 0; at += 32 {
		rva := func(o int) int { return m.u32(at + o) }
		if m.u32(at)&1 == 0 { // of the first version: addresses
			rva = func(o int) int { return int(uint32(m.u32(at+o)) - uint32(m.Base)) }
		}
		module := m.str(rva(4))
		m.setPtr(rva(8), l.Address(Export{Module: module}, m.Is64))
		addrs, names := rva(12), rva(16)
		for i := 0; m.ptr(names) != 0; i, names, addrs = i+1, names+m.ptrSize(), addrs+m.ptrSize() {
			if i%2 == 0 {
				v := m.ptr(names)
				if m.u32(at)&1 == 0 && v>>(8*m.ptrSize()-1) == 0 {
					v -= m.Base
				}
				m.setPtr(addrs, l.Address(m.thunk(module, v), m.Is64))
				m.Delay++
			}
		}
	}
}

// configure does what the loader does through TLS directory and load config.
func (l *Loader) configure(m *Mapped) {
	ps := m.ptrSize()
	inside := func(va uint64) bool { return va >= m.Base && va < m.Base+uint64(len(m.Mem)) }
	if tls, _ := m.dir(9); tls != 0 {
		if va := m.ptr(tls + 2*ps); inside(va) {
			binary.LittleEndian.PutUint32(m.Mem[va-m.Base:], uint32(1+l.Rand.Intn(20)))
		}
	}
	lc, _ := m.dir(10)
	if lc == 0 {
		return
	}
	size := m.u32(lc)
	field := func(o64, o32 int) int {
		o := o32
		if m.Is64 {
			o = o64
		}
		if o+ps > size || !inside(m.ptr(lc+o)) {
			return 0
		}
		return int(m.ptr(lc+o) - m.Base)
	}
	if at := field(0x58, 0x3c); at != 0 {
		def, cookie := uint64(0xBB40E64E), uint64(l.Rand.Uint32())|0x10000
		if m.Is64 {
			def, cookie = 0x2B992DDFA232, l.Rand.Uint64()>>16|0x10000
		}
		if m.ptr(at) == def {
			m.Cookie = true
			// The runtime sets the complement itself when it finds the default.
			for _, next := range []int{at - ps, at + ps} {
				if next >= 0 && m.ptr(next) == ^def&(^uint64(0)>>(64-8*ps)) {
					m.setPtr(next, ^cookie)
				}
			}
			m.setPtr(at, cookie)
		}
	}
	flagsAt := 0x58
	if m.Is64 {
		flagsAt = 0x90
	}
	if flagsAt+4 > size || m.u32(lc+flagsAt)&0x100 == 0 {
		return // IMAGE_GUARD_CF_INSTRUMENTED
	}
	// A program that does not ask for control flow guard runs without; a DLL may be
	// loaded into one that does.
	if m.u16(m.nt+22)&0x2000 == 0 && m.u16(m.nt+24+70)&0x4000 == 0 {
		return
	}
	for i, o := range [][2]int{{0x70, 0x48}, {0x78, 0x4c}, {0x118, 0xac}, {0x120, 0xb0}, {0x128, 0xb4}} {
		if at := field(o[0], o[1]); at != 0 && m.ptr(at) != 0 {
			m.setPtr(at, l.Address(Export{Module: "ntdll.dll", Name: fmt.Sprint("guard", i)}, m.Is64))
			m.Guards++
		}
	}
}
