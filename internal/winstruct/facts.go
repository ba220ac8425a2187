package winstruct

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// maxFacts bounds the facts that a profile or a pack names.
const maxFacts = 1 << 12

// FactsOf returns the names in the tags of a structure for Compile, each as a tag spells
// it, and the given symbols. They are sorted.
func FactsOf(v any, symbols ...string) []string {
	var out []string
	var walk func(t reflect.Type)
	walk = func(t reflect.Type) {
		for i := range t.NumField() {
			f := t.Field(i)
			if tag, ok := f.Tag.Lookup("win"); ok {
				names, _ := cutTag(tag)
				out = append(out, names...)
			} else if f.Type.Kind() == reflect.Struct && f.Type != fieldType {
				walk(f.Type)
			}
		}
	}
	walk(reflect.TypeOf(v))
	for _, name := range symbols {
		out = append(out, "sym("+name+")")
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// unasked returns those of the names of which the profile says nothing, see Only.
func (p *Profile) unasked(names []string) (out []string) {
	if p.facts == nil {
		return nil
	}
	for _, name := range names {
		if !p.facts[name] {
			out = append(out, name)
		}
	}
	return out
}

// Partial reports whether the profile has only some facts of its build, as one out of a
// pack has.
func (p *Profile) Partial() bool { return p.facts != nil }

// Only returns a profile that has only the named facts of p, and remembers which they are:
// Compile reads the same with it, and refuses to read others. Structures without a name in
// the source code are numbered anew, so that builds with the same layout have the same
// definitions. It fails if p itself says nothing of a fact.
func (p *Profile) Only(facts []string) (*Profile, error) {
	if u := p.unasked(facts); len(u) > 0 {
		return nil, &MissingFactsError{Identity: p.Identity, Unasked: u}
	}
	out := &Profile{Identity: p.Identity, Arch: p.Arch, Version: p.Version, Sources: p.Sources, facts: make(map[string]bool, len(facts)),
		structs: make(map[string]*Struct), enums: make(map[string]map[string]int64), symbols: make(map[string]uint64)}
	members := make(map[string]map[string]bool) // to keep, by structure
	for _, name := range facts {
		out.facts[name] = true
		if sym, ok := inside(name, "sym("); ok {
			if rva, ok := p.symbols[sym]; ok {
				out.symbols[sym] = rva
			}
			continue
		}
		if s, ok := inside(name, "sizeof("); ok {
			if p.structs[s] != nil && members[s] == nil {
				members[s] = make(map[string]bool)
			}
			continue
		}
		structName, path, ok := strings.Cut(name, ".")
		if !ok {
			return nil, fmt.Errorf("%q names no fact", name)
		}
		if _, err := p.Field(structName, path); err == nil {
			p.keep(members, structName, path)
		}
	}
	for name, kept := range members {
		s := p.structs[name]
		small := &Struct{Name: name, Size: s.Size}
		for _, f := range s.Fields {
			if kept[f.Name] {
				small.Fields = append(small.Fields, f)
				delete(kept, f.Name) // of two members with one name the first is found
			}
		}
		out.structs[name] = small
	}
	out.renumber()
	return out, nil
}

// keep notes the members that a path goes through.
func (p *Profile) keep(members map[string]map[string]bool, structName, path string) {
	for {
		if members[structName] == nil {
			members[structName] = make(map[string]bool)
		}
		name, rest, more := strings.Cut(path, ".")
		members[structName][name] = true
		if !more {
			return
		}
		f, _ := p.structs[structName].field(name)
		structName, path = f.Type, rest
	}
}

// renumber gives structures without a name in the source code names by the order in which
// the others lead to them. It changes the profile's structures.
func (p *Profile) renumber() {
	names := make(map[string]string)
	var visit func(s *Struct)
	visit = func(s *Struct) {
		for i := range s.Fields {
			f := &s.Fields[i]
			for _, typ := range []*string{&f.Type, &f.Target} {
				if !nameless(*typ) {
					continue
				}
				inner, kept := p.structs[*typ]
				if !kept {
					*typ = "_unnamed" // of no interest: the build's number for it is
					continue
				}
				known := names[*typ] != ""
				if !known {
					names[*typ] = "_unnamed_" + strconv.Itoa(len(names))
					visit(inner)
				}
				*typ = names[inner.Name]
			}
		}
	}
	for _, name := range p.Structs() {
		if !nameless(name) {
			visit(p.structs[name])
		}
	}
	renamed := make(map[string]*Struct, len(p.structs))
	for name, s := range p.structs {
		if n := names[name]; n != "" {
			s.Name, name = n, n
		}
		renamed[name] = s
	}
	p.structs = renamed
}
