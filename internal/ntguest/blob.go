package ntguest

import "sort"

// blob is a template under construction: the kernel structures of a process that
// does not run yet, in an arena of their own, and the changes that a copy of them
// needs at another address.
type blob struct {
	arena    arena
	pointers map[uint64]bool // addresses of words that may point into the blob
	fixups   []BootFixup
}

func (b *builder) inBlob(va uint64) bool {
	return b.blob != nil && va >= b.blob.arena.start && va < b.blob.arena.next
}

// pointer notes that the word at va was written with an address.
func (b *builder) pointer(va, v uint64) {
	if b.inBlob(va) {
		b.blob.pointers[va] = b.inBlob(v)
	}
}

// fix records a change to the copies of the template under construction. At, and
// Value where it is an object header, are addresses here and become offsets.
func (b *builder) fix(f BootFixup) {
	if b.blob == nil {
		return
	}
	f.At -= b.blob.arena.start
	if f.Kind == FixTypeIndex {
		f.Value -= b.blob.arena.start
	}
	b.blob.fixups = append(b.blob.fixups, f)
}

// finish returns all fix-ups: those recorded, and one for each pointer that stays
// within the blob.
func (bl *blob) finish() []BootFixup {
	var out []BootFixup
	for va, inside := range bl.pointers {
		if inside {
			out = append(out, BootFixup{At: va - bl.arena.start, Kind: FixReloc})
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].At < out[j].At })
	return append(out, bl.fixups...)
}
