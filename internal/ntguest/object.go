package ntguest

import (
	"fmt"
	"unicode/utf16"

	"vmav.dev/vmav/internal/winstruct"
)

// object is one structure of the profile at an address, being filled.
type object struct {
	b   *builder
	s   *space
	va  uint64
	typ string
}

// at views the memory at va of the kernel's address space as a structure.
func (b *builder) at(typ string, va uint64) object {
	return object{b: b, s: b.kernel, va: va, typ: typ}
}

// sizeof is the size of a structure in bytes; zero where the build lacks it.
func (b *builder) sizeof(typ string) uint64 {
	s, ok := b.structs(typ).Struct(typ)
	if !ok {
		return 0
	}
	return uint64(s.Size)
}

// structs returns the profile that a structure is taken from.
func (b *builder) structs(typ string) *winstruct.Profile {
	if b.lent != nil && (typ == "_KPCR" || typ == "_KPRCB") {
		return b.lent
	}
	return b.profile
}

// field resolves the first of paths that the build has.
func (o object) field(paths ...string) (winstruct.Field, bool) {
	for _, path := range paths {
		if f, err := o.b.structs(o.typ).Field(o.typ, path); err == nil {
			return f, true
		}
	}
	return winstruct.Field{}, false
}

func (o object) must(paths ...string) winstruct.Field {
	f, ok := o.field(paths...)
	if !ok {
		panic(fmt.Errorf("%s of build %s has none of %q", o.typ, o.b.build.Version, paths))
	}
	return f
}

// addr is the address of a field.
func (o object) addr(paths ...string) uint64 { return o.va + uint64(o.must(paths...).Offset) }

// set writes an integer, pointer or bit field. The build must have it.
func (o object) set(v uint64, paths ...string) { o.store(o.must(paths...), v) }

// opt writes a field where the build has it.
func (o object) opt(v uint64, paths ...string) {
	if f, ok := o.field(paths...); ok {
		o.store(f, v)
	}
}

func (o object) store(f winstruct.Field, v uint64) {
	va, size := o.va+uint64(f.Offset), f.Size
	switch size {
	case 1, 2, 4, 8:
	default:
		size = o.b.ptr() // an embedded structure that holds one word
	}
	if f.BitCount != 0 {
		mask := (uint64(1)<<f.BitCount - 1) << f.BitOffset
		v = o.s.get(va, size)&^mask | v<<f.BitOffset&mask
	}
	o.s.put(va, v, size)
	if size == o.b.ptr() && f.BitCount == 0 {
		o.b.pointer(va, v)
	}
}

// get reads a field back.
func (o object) get(paths ...string) uint64 {
	f := o.must(paths...)
	size := f.Size
	if size > 8 || size == 0 {
		size = o.b.ptr()
	}
	return f.Bits(o.s.get(o.va+uint64(f.Offset), size))
}

// ptr writes a pointer at an address, so that a template's copy follows it.
func (o object) ptr(va, v uint64) {
	o.s.put(va, v, o.b.ptr())
	o.b.pointer(va, v)
}

// ustr fills a UNICODE_STRING field with text whose buffer lies at buf, which must
// hold two bytes a unit and a terminator.
func (o object) ustr(buf uint64, text string, paths ...string) {
	at := o.addr(paths...)
	raw := utf16le(text)
	o.s.write(buf, append(raw, 0, 0))
	o.s.put(at, uint64(len(raw)), 2)
	o.s.put(at+2, uint64(len(raw)+2), 2)
	o.ptr(at+o.b.word(), buf)
}

func utf16le(text string) []byte {
	units := utf16.Encode([]rune(text))
	out := make([]byte, 0, 2*len(units)+2)
	for _, u := range units {
		out = append(out, byte(u), byte(u>>8))
	}
	return out
}

// utf16size is what a buffer for text takes, with its terminator.
func utf16size(text string) uint64 { return uint64(len(utf16le(text)) + 2) }

// listInit makes an empty LIST_ENTRY at va.
func (b *builder) listInit(s *space, va uint64) {
	b.link(s, va, va)
	b.link(s, va+b.word(), va)
}

// link writes one pointer of a LIST_ENTRY.
func (b *builder) link(s *space, va, to uint64) {
	s.put(va, to, b.ptr())
	b.pointer(va, to)
}

// listAppend puts entry at the tail of the list at head; both are LIST_ENTRY
// addresses in s.
func (b *builder) listAppend(s *space, head, entry uint64) {
	back := b.word()
	last := s.get(head+back, b.ptr())
	b.link(s, entry, head)
	b.link(s, entry+back, last)
	b.link(s, last, entry)
	b.link(s, head+back, entry)
}

// listRemove unlinks entry and leaves its own pointers as they are, as a rootkit
// does.
func (b *builder) listRemove(s *space, entry uint64) {
	back := b.word()
	next, prev := s.get(entry, b.ptr()), s.get(entry+back, b.ptr())
	s.put(prev, next, b.ptr())
	s.put(next+back, prev, b.ptr())
}
