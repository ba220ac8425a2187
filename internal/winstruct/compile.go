package winstruct

import (
	"fmt"
	"reflect"
	"sort"
	"strings"
)

// Missing is the offset that Compile sets for an optional member that the build does not
// have.
const Missing = ^uint32(0)

// MissingFactsError names every structure, field and symbol that a reader needs
// and a profile lacks.
type MissingFactsError struct {
	Identity Identity
	Facts    []string // as their tags spell them, sorted
	Unasked  []string // those that a pack was made without, so that nothing is known of them
}

// Error implements error.
func (e *MissingFactsError) Error() string {
	var parts []string
	if len(e.Facts) > 0 {
		parts = append(parts, "lacks "+strings.Join(e.Facts, ", "))
	}
	if len(e.Unasked) > 0 {
		parts = append(parts, "comes from a pack that another vmav made, without "+strings.Join(e.Unasked, ", ")+
			"; this vmav's profile pack makes one that has it")
	}
	return fmt.Sprintf("profile %s %s", e.Identity, strings.Join(parts, ", and "))
}

// Compile fills the structure that dst points to from the `win` tags of its
// members. It is how a reader declares what it needs of a build, and how it gets
// it without a look-up on the way:
//
//	PID     uint32 `win:"_EPROCESS.UniqueProcessId"`        // offset in bytes
//	Root    uint32 `win:"_EPROCESS.VadRoot.Root|_EPROCESS.VadRoot.BalancedRoot"` // first that exists
//	Size    uint32 `win:"sizeof(_MMVAD)"`                   // bytes
//	Head    uint64 `win:"sym(PsActiveProcessHead)"`         // RVA
//	Broken  Field  `win:"_EPROCESS.BreakOnTermination"`     // bit fields keep their bits
//	UserDTB uint32 `win:"_KPROCESS.UserDirectoryTableBase,optional"`
//
// Embedded and nested structures are filled too. An optional member that the build
// lacks is left Missing (uint32), 0 (uint64) or with its Name empty (Field). Any
// other is reported, all of them in one *MissingFactsError. A tag that cannot be
// meant is a mistake of the program and panics.
//
// A profile out of a pack has the facts that were asked for when the pack was made. A tag
// with another name is reported even if it is optional: the build may have what it names.
func Compile(p *Profile, dst any) error {
	v := reflect.ValueOf(dst)
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		panic(fmt.Sprintf("winstruct.Compile: %T is not a pointer to a structure", dst))
	}
	var a absences
	compile(p, v.Elem(), &a)
	if len(a.required) > 0 || len(a.unasked) > 0 {
		sort.Strings(a.required)
		sort.Strings(a.unasked)
		return &MissingFactsError{Identity: p.Identity, Facts: a.required, Unasked: a.unasked}
	}
	return nil
}

// Absent names what the tags of dst ask for and p does not have, in the order of the tags:
// facts that Compile would report, and optional ones. dst is a structure or a pointer to one.
func Absent(p *Profile, dst any) (required, optional []string) {
	t := reflect.TypeOf(dst)
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	var a absences
	compile(p, reflect.New(t).Elem(), &a)
	return a.required, a.optional
}

var fieldType = reflect.TypeOf(Field{})

// absences are the facts of tags that a profile does not have.
type absences struct {
	required, optional []string // as the tags spell them
	unasked            []string // of which a profile out of a pack knows nothing
}

// compile fills v and notes each tag none of whose names p has.
func compile(p *Profile, v reflect.Value, a *absences) {
	t := v.Type()
	for i := range t.NumField() {
		tag, ok := t.Field(i).Tag.Lookup("win")
		if !ok {
			if t.Field(i).Type.Kind() == reflect.Struct && t.Field(i).Type != fieldType {
				compile(p, v.Field(i), a)
			}
			continue
		}
		names, optional := cutTag(tag)
		if unasked := p.unasked(names); len(unasked) > 0 {
			a.unasked = append(a.unasked, unasked...)
			continue
		}
		if !resolveInto(p, v.Field(i), names) {
			switch t.Field(i).Type.Kind() {
			case reflect.Uint32:
				v.Field(i).SetUint(uint64(Missing))
			default:
				v.Field(i).SetZero()
			}
			if all := strings.Join(names, "|"); optional {
				a.optional = append(a.optional, all)
			} else {
				a.required = append(a.required, all)
			}
		}
	}
}

// cutTag returns the names of a tag, the preferred first.
func cutTag(tag string) (names []string, optional bool) {
	list, optional := strings.CutSuffix(tag, ",optional")
	return strings.Split(list, "|"), optional
}

// resolveInto sets dst from the first of the names that p has.
func resolveInto(p *Profile, dst reflect.Value, names []string) bool {
	for _, name := range names {
		if sym, ok := inside(name, "sym("); ok {
			if rva, ok := p.Symbol(sym); ok {
				dst.SetUint(rva)
				return true
			}
			continue
		}
		if s, ok := inside(name, "sizeof("); ok {
			if st, ok := p.Struct(s); ok {
				dst.SetUint(uint64(st.Size))
				return true
			}
			continue
		}
		structName, path, ok := strings.Cut(name, ".")
		if !ok {
			panic(fmt.Sprintf("winstruct.Compile: tag %q names no field", name))
		}
		f, err := p.Field(structName, path)
		if err != nil {
			continue
		}
		if dst.Type() == fieldType {
			dst.Set(reflect.ValueOf(f))
		} else {
			dst.SetUint(uint64(f.Offset))
		}
		return true
	}
	return false
}

func inside(name, open string) (string, bool) {
	rest, ok := strings.CutPrefix(name, open)
	if !ok {
		return "", false
	}
	return strings.TrimSuffix(rest, ")"), true
}
