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
	s, ok := b.profile.Struct(typ)
	if !ok {
		return 0
	}
	return uint64(s.Size)
}

// field resolves the first of paths that the build has.
func (o object) field(paths ...string) (winstruct.Field, bool) {
	for _, path := range paths {
		if f, err := o.b.profile.Field(o.typ, path); err == nil {
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
		size = 8 // an embedded structure that holds one word
	}
	if f.BitCount != 0 {
		mask := (uint64(1)<<f.BitCount - 1) << f.BitOffset
		v = o.s.get(va, size)&^mask | v<<f.BitOffset&mask
	}
	o.s.put(va, v, size)
	if size == 8 && f.BitCount == 0 {
		o.b.pointer(va, v)
	}
}

// get reads a field back.
func (o object) get(paths ...string) uint64 {
	f := o.must(paths...)
	size := f.Size
	if size > 8 || size == 0 {
		size = 8
	}
	return f.Bits(o.s.get(o.va+uint64(f.Offset), size))
}

// ptr writes a pointer at an address, so that a template's copy follows it.
func (o object) ptr(va, v uint64) {
	o.s.put(va, v, 8)
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
	o.ptr(at+8, buf)
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
	s.put(va, va, 8)
	s.put(va+8, va, 8)
	b.pointer(va, va)
	b.pointer(va+8, va)
}

// listAppend puts entry at the tail of the list at head; both are LIST_ENTRY
// addresses in s.
func (b *builder) listAppend(s *space, head, entry uint64) {
	last := s.get(head+8, 8)
	s.put(entry, head, 8)
	s.put(entry+8, last, 8)
	s.put(last, entry, 8)
	s.put(head+8, entry, 8)
	b.pointer(entry, head)
	b.pointer(entry+8, last)
	b.pointer(last, entry)
	b.pointer(head+8, entry)
}

// listRemove unlinks entry and leaves its own pointers as they are, as a rootkit
// does.
func (b *builder) listRemove(s *space, entry uint64) {
	next, prev := s.get(entry, 8), s.get(entry+8, 8)
	s.put(prev, next, 8)
	s.put(next+8, prev, 8)
}
