package pack

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"sort"
	"strings"
)

// Test for these with errors.Is.
var (
	ErrNotPack = errors.New("not a pack of kernels")
	ErrCorrupt = errors.New("corrupt pack of kernels")
)

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

// MaxSize bounds a pack, in bytes. One of 2,000 kernels has a few hundredths of it.
const MaxSize = 16 << 20

const (
	magic    = "vmavpack"
	format   = 1
	headSize = len(magic) + 4 + sha256.Size
	keySize  = 16 + 4

	maxKernels = 1 << 16
	maxItems   = 1 << 18 // of any table
	maxFacts   = 1 << 12
	maxName    = 1 << 10 // bytes
	maxSources = 1 << 6  // of one kernel
	maxStructs = 1 << 10 // of one kernel
	maxSymbols = 1 << 12 // of one kernel
	maxText    = 1 << 20 // bytes of the structures of one kernel
	maxTexts   = 1 << 28 // bytes of the structures of all layouts, see Check
	maxRVA     = 1 << 31
)

// Kernel is one kernel of a pack.
type Kernel struct {
	PDB     string // file name
	GUID    string // 32 upper-case hexadecimal digits
	Age     uint32
	Arch    string
	Version string // "" if it is not known
	Sources []Source
	Structs []string // definitions
	Symbols []Symbol

	// Numbers in the pack. Kernels with the same numbers have the same structures and
	// symbols of the same names.
	Layout, SymbolList int
}

// Source is winstruct.Source.
type Source struct{ Of, From, Verified string }

// Symbol is a global symbol of a kernel.
type Symbol struct {
	Name string
	RVA  uint64 // in the kernel's image
}

// Pack is an open pack. It is immutable and safe for concurrent use.
type Pack struct {
	keys  []byte
	facts []string

	names, sources, structs, layouts, lists, records table
}

// Is reports whether a file starts like a pack.
func Is(head []byte) bool { return bytes.HasPrefix(head, []byte(magic)) }

// Open verifies the digest of a pack and reads its tables' bounds. It parses no kernel. The
// caller must not change data as long as it uses the pack.
func Open(data []byte) (*Pack, error) {
	if !Is(data) {
		return nil, ErrNotPack
	}
	if len(data) > MaxSize {
		return nil, corrupt("%d bytes, at most %d are read", len(data), MaxSize)
	}
	if len(data) < headSize+4 {
		return nil, corrupt("%d bytes", len(data))
	}
	if f := be.Uint32(data[len(magic):]); f != format {
		return nil, fmt.Errorf("pack of format %d: this vmav reads format %d", f, format)
	}
	rest := data[headSize:]
	if sum := sha256.Sum256(rest); !bytes.Equal(sum[:], data[headSize-sha256.Size:headSize]) {
		return nil, corrupt("its content does not have the digest that its head says: it is damaged or was changed")
	}
	n := uint64(be.Uint32(rest))
	rest = rest[4:]
	if n > maxKernels || n*keySize > uint64(len(rest)) {
		return nil, corrupt("%d kernels in %d bytes", n, len(rest))
	}
	p := &Pack{keys: rest[:n*keySize]}
	rest = rest[n*keySize:]
	var facts table
	var err error
	for _, t := range []struct {
		into *table
		what string
		most int
	}{{&facts, "fact", maxFacts}, {&p.names, "name", maxItems}, {&p.sources, "list of source", maxItems}, {&p.structs, "structure", maxItems},
		{&p.layouts, "layout", maxItems}, {&p.lists, "list of symbol", maxItems}, {&p.records, "record", maxKernels}} {
		if *t.into, rest, err = cutTable(rest, t.what, t.most); err != nil {
			return nil, err
		}
	}
	if len(rest) > 0 {
		return nil, corrupt("%d bytes behind the last table", len(rest))
	}
	if p.records.len() != p.Len() {
		return nil, corrupt("%d records of %d kernels", p.records.len(), p.Len())
	}
	for i := range facts.len() {
		f, err := facts.name(uint64(i))
		if err != nil {
			return nil, err
		}
		p.facts = append(p.facts, f)
	}
	return p, nil
}

// Len returns the number of kernels.
func (p *Pack) Len() int { return len(p.keys) / keySize }

// Layouts returns the number of different layouts.
func (p *Pack) Layouts() int { return p.layouts.len() }

// Facts returns the names of what was asked for when the pack was made. The caller must not
// change them.
func (p *Pack) Facts() []string { return p.facts }

func (p *Pack) key(i int) []byte { return p.keys[i*keySize : (i+1)*keySize] }

func keyOf(guid string, age uint32) ([]byte, error) {
	b, err := hex.DecodeString(guid)
	if err != nil || len(b) != 16 {
		return nil, fmt.Errorf("GUID %q is not 32 hexadecimal digits", guid)
	}
	return be.AppendUint32(b, age), nil
}

// Find returns the number of a kernel, for Kernel and Head.
func (p *Pack) Find(guid string, age uint32) (i int, ok bool) {
	want, err := keyOf(guid, age)
	if err != nil {
		return 0, false
	}
	i = sort.Search(p.Len(), func(i int) bool { return bytes.Compare(p.key(i), want) >= 0 })
	return i, i < p.Len() && bytes.Equal(p.key(i), want)
}

// Head returns kernel i without its structures and symbols.
func (p *Pack) Head(i int) (Kernel, error) {
	k, _, err := p.head(i)
	return k, err
}

// Kernel returns kernel i.
func (p *Pack) Kernel(i int) (Kernel, error) {
	k, rvas, err := p.head(i)
	if err == nil {
		err = p.addStructs(&k)
	}
	if err == nil {
		err = p.addSymbols(&k, rvas)
	}
	if err != nil {
		return Kernel{}, err
	}
	return k, nil
}

// head returns what is in a kernel's record, and the numbers of its RVAs.
func (p *Pack) head(i int) (Kernel, *numbers, error) {
	if i < 0 || i >= p.Len() {
		return Kernel{}, nil, corrupt("kernel %d of %d", i, p.Len())
	}
	b, err := p.records.at(uint64(i))
	if err != nil {
		return Kernel{}, nil, err
	}
	key := p.key(i)
	k := Kernel{GUID: strings.ToUpper(hex.EncodeToString(key[:16])), Age: be.Uint32(key[16:])}
	n := &numbers{what: fmt.Sprintf("record %d", i), rest: b}
	for _, s := range []*string{&k.PDB, &k.Version, &k.Arch} {
		j := n.next()
		if n.err == nil {
			*s, n.err = p.names.name(j)
		}
	}
	sources, layout, list := n.next(), n.next(), n.next()
	if n.err == nil && (layout >= uint64(p.layouts.len()) || list >= uint64(p.lists.len())) {
		n.err = corrupt("record %d has layout %d of %d and list of symbols %d of %d", i, layout, p.layouts.len(), list, p.lists.len())
	}
	if n.err == nil {
		k.Sources, n.err = p.sourcesOf(sources)
	}
	if n.err != nil {
		return Kernel{}, nil, n.err
	}
	k.Layout, k.SymbolList = int(layout), int(list)
	return k, n, nil
}

func (p *Pack) sourcesOf(i uint64) (out []Source, err error) {
	b, err := p.sources.at(i)
	n := &numbers{what: "sources", rest: b, err: err}
	for n.more() {
		if len(out) == maxSources {
			return nil, corrupt("more than %d sources of one kernel", maxSources)
		}
		var s Source
		for _, to := range []*string{&s.Of, &s.From, &s.Verified} {
			j := n.next()
			if n.err == nil {
				*to, n.err = p.names.name(j)
			}
		}
		out = append(out, s)
	}
	if n.err != nil {
		return nil, n.err
	}
	return out, nil
}

func (p *Pack) addStructs(k *Kernel) error {
	texts, err := p.texts(uint64(k.Layout))
	if err != nil {
		return err
	}
	for _, t := range texts {
		k.Structs = append(k.Structs, string(t))
	}
	return nil
}

// texts are the definitions of a layout's structures, in the file's memory.
func (p *Pack) texts(layout uint64) (out [][]byte, err error) {
	b, err := p.layouts.at(layout)
	n := &numbers{what: "layout", rest: b, err: err}
	last, total := uint64(0), 0
	for n.more() {
		j := n.next()
		if n.err != nil {
			break
		}
		if len(out) == maxStructs || len(out) > 0 && j <= last {
			return nil, corrupt("layout %d has more than %d structures, or not in their order", layout, maxStructs)
		}
		last = j
		t, err := p.structs.at(j)
		if err != nil {
			return nil, err
		}
		if total += len(t); total > maxText {
			return nil, corrupt("layout %d has more than %d bytes", layout, maxText)
		}
		out = append(out, t)
	}
	return out, n.err
}

func (p *Pack) addSymbols(k *Kernel, rvas *numbers) error {
	b, err := p.lists.at(uint64(k.SymbolList))
	n := &numbers{what: "list of symbols", rest: b, err: err}
	for n.more() {
		if len(k.Symbols) == maxSymbols {
			return corrupt("more than %d symbols of one kernel", maxSymbols)
		}
		j, rva := n.next(), rvas.next()
		if err := errors.Join(n.err, rvas.err); err != nil {
			return err
		}
		if rva > maxRVA {
			return corrupt("an RVA of %#x", rva)
		}
		name, err := p.names.name(j)
		if err != nil {
			return err
		}
		k.Symbols = append(k.Symbols, Symbol{name, rva})
	}
	if n.err == nil && len(rvas.rest) > 0 {
		return corrupt("more RVAs than symbols")
	}
	return n.err
}

// Check parses all of a pack. A pack that passes gives every kernel that it names.
func (p *Pack) Check() error {
	total := 0
	for i := range p.layouts.len() {
		texts, err := p.texts(uint64(i))
		if err != nil {
			return err
		}
		for _, t := range texts {
			total += len(t)
		}
		if total > maxTexts {
			return corrupt("its layouts have more than %d bytes", maxTexts)
		}
	}
	for i := range p.Len() {
		if i > 0 && bytes.Compare(p.key(i-1), p.key(i)) >= 0 {
			return corrupt("kernels %d and %d are not in order", i-1, i)
		}
		k, rvas, err := p.head(i)
		if err == nil {
			err = p.addSymbols(&k, rvas)
		}
		if err != nil {
			return fmt.Errorf("kernel %s%X: %w", k.GUID, k.Age, err)
		}
	}
	return nil
}
