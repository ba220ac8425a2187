package winstruct

import (
	"fmt"
	"slices"
	"strings"

	"vmav.dev/vmav/internal/winstruct/pack"
)

// KernelPack is an open pack: one file with the facts that readers need of many kernels. It
// is immutable and safe for concurrent use.
type KernelPack struct {
	*pack.Pack
	facts map[string]bool
}

// OpenKernelPack opens a pack. It parses no kernel of it; see Check. The caller must not
// change data.
func OpenKernelPack(data []byte) (*KernelPack, error) {
	p, err := pack.Open(data)
	if err != nil {
		return nil, err
	}
	k := &KernelPack{Pack: p, facts: make(map[string]bool)}
	for _, f := range p.Facts() {
		k.facts[f] = true
	}
	return k, nil
}

// Find returns the profile of a kernel, or fails with a *MissingError if the pack does not
// have it. It implements Finder.
func (k *KernelPack) Find(id Identity) (*Profile, error) {
	i, err := k.number(id)
	if err != nil {
		return nil, err
	}
	return k.Profile(i)
}

// FindPacked does what Find does without parsing the kernel: it returns a profile file.
func (k *KernelPack) FindPacked(id Identity) ([]byte, error) {
	i, err := k.number(id)
	if err != nil {
		return nil, err
	}
	_, text, err := k.file(i)
	return text, err
}

func (k *KernelPack) number(id Identity) (int, error) {
	i, ok := k.Pack.Find(id.GUID, id.Age)
	if !ok || id.GUID == NoGUID {
		return 0, &MissingError{Identity: id}
	}
	head, err := k.Head(i)
	if err == nil && head.PDB != strings.ToLower(id.PDB) {
		err = &MissingError{Identity: id}
	}
	return i, err
}

// Entry returns what the pack says of kernel i, without its place in a store.
func (k *KernelPack) Entry(i int) (Entry, error) {
	head, err := k.Head(i)
	if err != nil {
		return Entry{}, err
	}
	p := headOf(&head)
	if err := p.checkHead(); err != nil {
		return Entry{}, err
	}
	return Entry{Identity: p.Identity, Version: p.Version, Arch: p.Arch, Sources: p.Sources}, nil
}

func headOf(k *pack.Kernel) *Profile {
	p := &Profile{Identity: Identity{PDB: k.PDB, GUID: k.GUID, Age: k.Age}, Arch: k.Arch, Version: k.Version}
	for _, s := range k.Sources {
		p.Sources = append(p.Sources, Source{Of: s.Of, From: s.From, Verified: Verification(s.Verified)})
	}
	return p
}

// Profile returns the profile of kernel i.
func (k *KernelPack) Profile(i int) (*Profile, error) {
	want, text, err := k.file(i)
	if err != nil {
		return nil, err
	}
	p, err := loadBytes(text, true)
	if err == nil && p.Identity != want {
		err = fmt.Errorf("its structures make it %s", p.Identity)
	}
	if err != nil {
		return nil, fmt.Errorf("kernel %s of the pack: %w", want, err)
	}
	return p, nil
}

// file returns kernel i as a profile file.
func (k *KernelPack) file(i int) (Identity, []byte, error) {
	kernel, err := k.Kernel(i)
	if err != nil {
		return Identity{}, nil, err
	}
	p := headOf(&kernel)
	p.facts = k.facts
	b, err := p.appendHead(make([]byte, 0, 1<<14))
	if err != nil {
		return Identity{}, nil, err
	}
	for j, s := range kernel.Structs {
		b = append(separate(b, j), s...)
	}
	b = append(b, "\n],\n\"symbols\":{"...)
	for j, s := range kernel.Symbols {
		b = fmt.Appendf(append(appendString(separate(b, j), s.Name), ':'), "%d", s.RVA)
	}
	return p.Identity, p.appendEnd(append(b, "\n}"...)), nil
}

// Check parses all of the pack, and asks usable of every kind of kernel in it: one for each
// layout and list of symbols.
func (k *KernelPack) Check(usable func(*Profile) error) error {
	if k.Len() == 0 {
		return fmt.Errorf("the pack has no kernel")
	}
	if err := k.Pack.Check(); err != nil {
		return err
	}
	type kind struct {
		layout, list int
		arch         string
	}
	known := make(map[kind]bool)
	for i := range k.Len() {
		head, err := k.Head(i)
		if err != nil {
			return err
		}
		if err := headOf(&head).checkHead(); err != nil {
			return fmt.Errorf("kernel %d of the pack: %w", i, err)
		}
		if head.GUID == NoGUID {
			return fmt.Errorf("kernel %d of the pack has no GUID", i)
		}
		this := kind{head.Layout, head.SymbolList, head.Arch}
		if known[this] {
			continue
		}
		known[this] = true
		p, err := k.Profile(i)
		if err == nil {
			err = usable(p)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// PackBuilder makes a pack of profiles.
type PackBuilder struct {
	b     *pack.Builder
	facts []string
}

// NewPackBuilder begins a pack with the named facts (FactsOf) of every kernel.
func NewPackBuilder(facts []string) *PackBuilder {
	return &PackBuilder{b: pack.NewBuilder(facts), facts: facts}
}

// Len returns the number of kernels.
func (b *PackBuilder) Len() int { return b.b.Len() }

// Bytes returns the pack, which depends on the kernels but not on their order.
func (b *PackBuilder) Bytes() ([]byte, error) { return b.b.Bytes() }

// Add adds a kernel. A kernel that was added already must have the same facts.
func (b *PackBuilder) Add(p *Profile) error {
	err := p.Identity.Check()
	if err == nil && p.GUID == NoGUID {
		err = fmt.Errorf("it is a layout, of no one image")
	}
	if err != nil {
		return fmt.Errorf("pack %s: %w", p.Identity, err)
	}
	small, err := p.Only(b.facts)
	if err != nil {
		return fmt.Errorf("pack %s: %w", p.Identity, err)
	}
	k := pack.Kernel{PDB: p.PDB, GUID: p.GUID, Age: p.Age, Arch: p.Arch, Version: p.Version}
	for _, s := range p.Sources {
		k.Sources = append(k.Sources, pack.Source{Of: s.Of, From: s.From, Verified: string(s.Verified)})
	}
	for _, name := range small.Structs() {
		k.Structs = append(k.Structs, string(small.structs[name].appendVtypes(nil)))
	}
	for name, rva := range small.symbols {
		k.Symbols = append(k.Symbols, pack.Symbol{Name: name, RVA: rva})
	}
	if err := b.b.Add(k); err != nil {
		return fmt.Errorf("pack %s: %w", p.Identity, err)
	}
	return nil
}

// firstOfLayout leaves out kernels of packs that have the layout of one before.
func firstOfLayout(entries []Entry) []Entry {
	known := make(map[string]bool)
	return slices.DeleteFunc(entries, func(e Entry) bool {
		again := e.layout != "" && known[e.layout]
		known[e.layout] = true
		return again
	})
}
