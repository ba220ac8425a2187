package pack

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Builder collects kernels for a pack.
type Builder struct {
	facts   []string
	kernels map[string]*Kernel // by key
	shared  map[string]string  // texts, so that equal ones are in memory once
}

// share returns a text that is part of no other: a name may be part of a whole symbol
// file's text, which then could not be freed.
func (b *Builder) share(s string) string {
	known, ok := b.shared[s]
	if !ok {
		known = strings.Clone(s)
		b.shared[known] = known
	}
	return known
}

// NewBuilder begins a pack of kernels of which facts were asked for.
func NewBuilder(facts []string) *Builder {
	return &Builder{facts: facts, kernels: make(map[string]*Kernel), shared: make(map[string]string)}
}

// Len returns the number of kernels.
func (b *Builder) Len() int { return len(b.kernels) }

// Add adds a kernel. A kernel that is there already must be the same; the pack keeps the
// version if one of the two has it.
func (b *Builder) Add(k Kernel) error {
	key, err := keyOf(k.GUID, k.Age)
	if err != nil {
		return err
	}
	total := 0
	k.Structs, k.Symbols, k.Sources = slices.Clone(k.Structs), slices.Clone(k.Symbols), slices.Clone(k.Sources)
	for i, s := range k.Structs {
		k.Structs[i] = b.share(s)
		total += len(s)
	}
	for _, s := range []*string{&k.PDB, &k.GUID, &k.Version, &k.Arch} {
		*s = b.share(*s)
	}
	for i, s := range k.Sources {
		k.Sources[i] = Source{b.share(s.Of), b.share(s.From), b.share(s.Verified)}
	}
	for i := range k.Symbols {
		k.Symbols[i].Name = b.share(k.Symbols[i].Name)
	}
	slices.Sort(k.Structs)
	k.Structs = slices.Compact(k.Structs)
	slices.SortFunc(k.Symbols, func(a, c Symbol) int { return cmp.Compare(a.Name, c.Name) })
	if len(k.Structs) > maxStructs || total > maxText || len(k.Symbols) > maxSymbols || len(k.Sources) > maxSources {
		return fmt.Errorf("%d structures of %d bytes, %d symbols, %d sources: more than a pack takes", len(k.Structs), total, len(k.Symbols), len(k.Sources))
	}
	for _, s := range k.names() {
		if len(s) > maxName {
			return fmt.Errorf("a name of %d bytes: more than a pack takes", len(s))
		}
	}
	for _, s := range k.Symbols {
		if s.RVA > maxRVA {
			return fmt.Errorf("symbol %s at %#x: no image is that large", s.Name, s.RVA)
		}
	}
	old := b.kernels[string(key)]
	if old == nil {
		if len(b.kernels) == maxKernels {
			return fmt.Errorf("more than %d kernels", maxKernels)
		}
		b.kernels[string(key)] = &k
		return nil
	}
	if old.PDB != k.PDB || old.Arch != k.Arch || !slices.Equal(old.Structs, k.Structs) || !slices.Equal(old.Symbols, k.Symbols) {
		return fmt.Errorf("another source of this kernel says otherwise")
	}
	if old.Version == "" {
		*old = k
	}
	return nil
}

// names are all names in a kernel's record.
func (k *Kernel) names() []string {
	out := []string{k.PDB, k.Version, k.Arch}
	for _, s := range k.Sources {
		out = append(out, s.Of, s.From, s.Verified)
	}
	for _, s := range k.Symbols {
		out = append(out, s.Name)
	}
	return out
}

// numbered gives each different text a number.
type numbered struct {
	of    map[string]uint64
	items []string
}

func (n *numbered) number(s string) uint64 {
	i, ok := n.of[s]
	if !ok {
		if n.of == nil {
			n.of = make(map[string]uint64)
		}
		i = uint64(len(n.items))
		n.of[s] = i
		n.items = append(n.items, s)
	}
	return i
}

// Bytes returns the pack. The same kernels give the same bytes, in whatever order they were
// added.
func (b *Builder) Bytes() ([]byte, error) {
	if len(b.facts) > maxFacts {
		return nil, fmt.Errorf("%d facts: more than a pack takes", len(b.facts))
	}
	keys := slices.Sorted(maps.Keys(b.kernels))
	used := make(map[string]bool)
	for _, k := range b.kernels {
		for _, s := range k.Structs {
			used[s] = true
		}
	}
	var names, sources, texts, layouts, lists numbered
	for _, s := range slices.Sorted(maps.Keys(used)) {
		texts.number(s)
	}
	out := make([]byte, headSize, 1<<18)
	out = be.AppendUint32(out, uint32(len(keys)))
	records := make([]string, 0, len(keys))
	for _, key := range keys {
		out = append(out, key...)
		k := b.kernels[key]
		var from, layout, list, rec []byte
		for _, s := range k.Sources {
			for _, text := range []string{s.Of, s.From, s.Verified} {
				from = binary.AppendUvarint(from, names.number(text))
			}
		}
		for _, s := range k.Structs { // in order, as texts is
			layout = binary.AppendUvarint(layout, texts.number(s))
		}
		for _, s := range k.Symbols {
			list = binary.AppendUvarint(list, names.number(s.Name))
		}
		for _, n := range []uint64{names.number(k.PDB), names.number(k.Version), names.number(k.Arch), sources.number(string(from)),
			layouts.number(string(layout)), lists.number(string(list))} {
			rec = binary.AppendUvarint(rec, n)
		}
		for _, s := range k.Symbols {
			rec = binary.AppendUvarint(rec, s.RVA)
		}
		records = append(records, string(rec))
	}
	var err error
	for _, items := range [][]string{b.facts, names.items, sources.items, texts.items, layouts.items, lists.items, records} {
		if len(items) > maxItems {
			return nil, fmt.Errorf("%d different parts: more than a pack takes", len(items))
		}
		if out, err = appendTable(out, items); err != nil {
			return nil, err
		}
	}
	if len(out) > MaxSize {
		return nil, fmt.Errorf("a pack of %d bytes, at most %d are read", len(out), MaxSize)
	}
	copy(out, magic)
	be.PutUint32(out[len(magic):], format)
	seal(out)
	return bytes.Clone(out), nil
}

// seal writes the digest into a pack's head.
func seal(pack []byte) {
	sum := sha256.Sum256(pack[headSize:])
	copy(pack[headSize-sha256.Size:headSize], sum[:])
}

// Summary says in a line what a pack has.
func (p *Pack) Summary() string {
	return fmt.Sprintf("%d kernels, %d layouts, %d structures", p.Len(), p.layouts.len(), p.structs.len())
}
