package winstruct

import (
	"bytes"
	"encoding/json"
	"fmt"

	"www.velocidex.com/golang/vfilter"
	"www.velocidex.com/golang/vtypes"
)

// Value is one member of a structure that was read: its offset, its type as the profile
// spells it, and its value.
type Value struct {
	Field        // Name is the dotted path from the structure that was asked for
	Value uint64 // of integers, pointers and bit fields
	Bytes []byte // of arrays and of what has no size of an integer; nil for the others
}

// Dumper reads any structure of a profile by its vtypes definition. It serves to show
// structures; code that walks them uses Compile. It is not safe for concurrent use.
type Dumper struct {
	profile *Profile
	engine  *vtypes.Profile
	scope   vfilter.Scope
}

// word returns the name of the vtypes integer with a size in bytes, or "" if there is none.
func word(size uint32) string {
	switch size {
	case 1, 2, 4, 8:
		return fmt.Sprintf("uint%d", 8*size)
	}
	return ""
}

// NewDumper passes the profile's definitions to vtypes. Members of nested structures are
// defined as members of the outer structure, with dotted paths. Pointers are defined as
// integers, so that vtypes follows none.
func (p *Profile) NewDumper(structName string) (*Dumper, error) {
	fields, err := p.flatten(structName)
	if err != nil {
		return nil, err
	}
	var defs [][]any
	for _, f := range fields {
		w := word(f.Size)
		switch {
		case w == "" || f.Type == "array":
		case f.BitCount != 0:
			defs = append(defs, []any{f.Name, f.Offset, "BitField", map[string]any{"type": w, "start_bit": f.BitOffset, "end_bit": f.BitOffset + f.BitCount}})
		default:
			defs = append(defs, []any{f.Name, f.Offset, w})
		}
	}
	text, err := json.Marshal([]any{[]any{structName, p.structs[structName].Size, defs}})
	if err != nil {
		return nil, err
	}
	d := &Dumper{profile: p, engine: vtypes.NewProfile(), scope: vfilter.NewScope()}
	vtypes.AddModel(d.engine)
	d.scope.AddProtocolImpl(vtypes.GetProtocols()...)
	if err := d.engine.ParseStructDefinitions(string(text)); err != nil {
		return nil, fmt.Errorf("define %s for vtypes: %w", structName, err)
	}
	return d, nil
}

const (
	maxDepth  = 6     // of nested structures
	maxValues = 20000 // members of one structure with all it nests
)

// flatten lists the members of a structure with those of the structures it nests.
func (p *Profile) flatten(structName string) ([]Field, error) {
	var out []Field
	var walk func(name, prefix string, base uint32, depth int) error
	walk = func(name, prefix string, base uint32, depth int) error {
		s, ok := p.structs[name]
		if !ok {
			return fmt.Errorf("profile %s has no structure %q", p.Identity, name)
		}
		for _, f := range s.Fields {
			f.Offset += base
			f.Name = prefix + f.Name
			if _, nested := p.structs[f.Type]; nested && depth < maxDepth && f.BitCount == 0 {
				if err := walk(f.Type, f.Name+".", f.Offset, depth+1); err != nil {
					return err
				}
				continue
			}
			if out = append(out, f); len(out) > maxValues {
				return fmt.Errorf("structure %s has more than %d members", structName, maxValues)
			}
		}
		return nil
	}
	return out, walk(structName, "", 0, 0)
}

// Dump decodes a structure from a copy of its memory, which must have at least its size.
// vtypes panics on some input; Dump returns that as an error.
func (d *Dumper) Dump(structName string, mem []byte) (out []Value, err error) {
	s, ok := d.profile.structs[structName]
	if !ok {
		return nil, fmt.Errorf("profile %s has no structure %q", d.profile.Identity, structName)
	}
	if uint64(len(mem)) < uint64(s.Size) {
		return nil, fmt.Errorf("%d bytes are less than the %d of %s", len(mem), s.Size, structName)
	}
	defer func() {
		if r := recover(); r != nil {
			out, err = nil, fmt.Errorf("read %s with vtypes: %v", structName, r)
		}
	}()
	fields, err := d.profile.flatten(structName)
	if err != nil {
		return nil, err
	}
	// vtypes reads integers eight bytes at a time, over the end of the structure.
	padded := append(append(make([]byte, 0, len(mem)+8), mem...), make([]byte, 8)...)
	obj, err := d.engine.Parse(d.scope, structName, bytes.NewReader(padded), 0)
	if err != nil {
		return nil, fmt.Errorf("read %s with vtypes: %w", structName, err)
	}
	for _, f := range fields {
		v := Value{Field: f}
		if word(f.Size) == "" || f.Type == "array" {
			end := min(uint64(f.Offset)+uint64(f.Size), uint64(len(mem)))
			if uint64(f.Offset) < end {
				v.Bytes = mem[f.Offset:end]
			} else {
				v.Bytes = []byte{}
			}
			out = append(out, v)
			continue
		}
		got, ok := d.scope.Associative(obj, f.Name)
		if !ok {
			return nil, fmt.Errorf("vtypes knows no member %s of %s", f.Name, structName)
		}
		if v.Value, ok = integer(got); !ok {
			return nil, fmt.Errorf("vtypes reads member %s of %s as %T", f.Name, structName, got)
		}
		if f.BitCount != 0 && f.BitCount < 64 {
			v.Value &= 1<<f.BitCount - 1 // vtypes carries the sign of the word along
		}
		out = append(out, v)
	}
	return out, nil
}

func integer(v any) (uint64, bool) {
	switch n := v.(type) {
	case uint64:
		return n, true
	case int64:
		return uint64(n), true
	case uint32:
		return uint64(n), true
	case uint16:
		return uint64(n), true
	case uint8:
		return uint64(n), true
	case int:
		return uint64(n), true
	}
	return 0, false
}
