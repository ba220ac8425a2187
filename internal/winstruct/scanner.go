package winstruct

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// scanner reads JSON of a known shape without reflection. Every command loads a profile,
// and encoding/json took nine tenths of the time for that. Strings are slices of the text.
// The first error is kept, and everything read after it is zero.
type scanner struct {
	text   string
	at     int
	err    error
	fields []Field // of the structure at hand
}

func (s *scanner) fail(format string, args ...any) {
	if s.err == nil {
		s.err = fmt.Errorf("at byte %d: %s", s.at, fmt.Sprintf(format, args...))
		s.at = len(s.text)
	}
}

// peek returns the next byte behind white space, or 0 at the end.
func (s *scanner) peek() byte {
	for s.at < len(s.text) {
		switch c := s.text[s.at]; c {
		case ' ', '\n', '\t', '\r':
			s.at++
		default:
			return c
		}
	}
	return 0
}

func (s *scanner) expect(c byte) {
	if got := s.peek(); got != c {
		s.fail("%q where %q belongs", got, c)
		return
	}
	s.at++
}

// next goes to the next element of the open array or object and reports whether there is
// one. If there is none, it closes it.
func (s *scanner) next(closing byte, first *bool) bool {
	if s.err != nil {
		return false
	}
	if s.peek() == closing {
		s.at++
		return false
	}
	if !*first {
		s.expect(',')
	}
	*first = false
	return s.err == nil
}

// each reads an object and calls f with each key, at its value.
func (s *scanner) each(f func(key string)) {
	s.expect('{')
	for first := true; s.next('}', &first); {
		key := s.str()
		s.expect(':')
		if s.err == nil {
			f(key)
		}
	}
}

// elements reads an array and calls f with each index, at the element.
func (s *scanner) elements(f func(i int)) {
	s.expect('[')
	i := 0
	for first := true; s.next(']', &first); i++ {
		f(i)
	}
}

// raw returns the content of a string between its quotes, and whether it has escapes.
func (s *scanner) raw() (text string, escaped bool) {
	s.expect('"')
	if s.err != nil {
		return "", false
	}
	start := s.at
	for s.at < len(s.text) {
		switch c := s.text[s.at]; {
		case c == '"':
			s.at++
			return s.text[start : s.at-1], escaped
		case c == '\\':
			escaped = true
			s.at += 2
		case c < ' ':
			s.fail("a control character in a string")
			return "", false
		default:
			s.at++
		}
	}
	s.fail("a string without an end")
	return "", false
}

func (s *scanner) str() string {
	raw, escaped := s.raw()
	if s.err != nil {
		return ""
	}
	if escaped {
		var out string
		if err := json.Unmarshal([]byte(s.text[s.at-len(raw)-2:s.at]), &out); err != nil {
			s.fail("%v", err)
		}
		return out
	}
	return raw
}

// number reads an integer between min and max.
func (s *scanner) number(lowest, highest int64) int64 {
	s.peek()
	start := s.at
	for s.at < len(s.text) && (s.text[s.at] >= '0' && s.text[s.at] <= '9' || s.text[s.at] == '-' && s.at == start) {
		s.at++
	}
	digits := s.text[start:s.at]
	v, err := strconv.ParseInt(digits, 10, 64)
	if err != nil && lowest == math.MinInt64 && highest == math.MaxInt64 {
		var u uint64 // one beyond the sign bit is meant as its bits
		u, err = strconv.ParseUint(digits, 10, 64)
		v = int64(u)
	}
	if err != nil || len(digits) > 1 && digits[0] == '0' {
		s.fail("%q is no integer", digits)
		return 0
	}
	if v < lowest || v > highest {
		s.fail("%d is out of bounds", v)
		return 0
	}
	return v
}

func (s *scanner) u32() uint32 { return uint32(s.number(0, math.MaxUint32)) }

// skip skips a value of any kind.
func (s *scanner) skip(depth int) {
	if depth > 32 {
		s.fail("nested too deeply")
		return
	}
	switch c := s.peek(); c {
	case '{':
		s.each(func(string) { s.skip(depth + 1) })
	case '[':
		s.elements(func(int) { s.skip(depth + 1) })
	case '"':
		s.raw()
	case 't', 'f', 'n':
		for _, word := range []string{"true", "false", "null"} {
			if len(s.text)-s.at >= len(word) && s.text[s.at:s.at+len(word)] == word {
				s.at += len(word)
				return
			}
		}
		s.fail("no value of JSON")
	default:
		start := s.at
		for s.at < len(s.text) && strings.IndexByte("+-.0123456789eE", s.text[s.at]) >= 0 {
			s.at++
		}
		if s.at == start {
			s.fail("no value of JSON")
		}
	}
}

// parseFile reads the text of a profile file. The caller checks the result.
func parseFile(text []byte) (*Profile, error) {
	s := &scanner{text: string(text)}
	p := &Profile{structs: make(map[string]*Struct), enums: make(map[string]map[string]int64), symbols: make(map[string]uint64)}
	format := int64(0)
	s.each(func(key string) {
		switch key {
		case "vmav_profile":
			format = s.number(0, math.MaxInt32)
		case "pdb":
			p.PDB = s.str()
		case "guid":
			p.GUID = s.str()
		case "age":
			p.Age = s.u32()
		case "arch":
			p.Arch = s.str()
		case "version":
			p.Version = s.str()
		case "sources":
			s.elements(func(int) { p.Sources = append(p.Sources, s.source()) })
		case "types":
			s.elements(func(int) { s.structure(p) })
		case "enums":
			s.each(func(name string) {
				constants := make(map[string]int64)
				s.each(func(c string) { constants[c] = s.number(math.MinInt64, math.MaxInt64) })
				p.enums[name] = constants
			})
		case "symbols":
			s.each(func(name string) {
				p.symbols[name] = uint64(s.number(0, maxExtent))
				if len(p.symbols) > maxSymbols {
					s.fail("more symbols than any kernel has")
				}
			})
		case "facts":
			p.facts = make(map[string]bool)
			s.elements(func(int) {
				if p.facts[s.str()] = true; len(p.facts) > maxFacts {
					s.fail("more facts than any reader asks for")
				}
			})
		default:
			s.skip(0) // of a later vmav, or a person's note
		}
	})
	if s.err == nil && s.peek() != 0 {
		s.fail("something behind the end")
	}
	if format != fileVersion && (s.err == nil || format != 0) {
		return nil, fmt.Errorf("profile format %d: this vmav reads format %d", format, fileVersion)
	}
	if s.err != nil {
		return nil, fmt.Errorf("parse: %w", s.err)
	}
	return p, nil
}

func (s *scanner) source() (out Source) {
	s.each(func(key string) {
		switch key {
		case "of":
			out.Of = s.str()
		case "from":
			out.From = s.str()
		case "verified":
			out.Verified = Verification(s.str())
		default:
			s.skip(0)
		}
	})
	return out
}

// structure reads [name, size, [fields]] into p.
func (s *scanner) structure(p *Profile) {
	st := new(Struct)
	n := 0
	s.elements(func(i int) {
		switch n++; i {
		case 0:
			st.Name = s.str()
		case 1:
			st.Size = uint32(s.number(0, maxExtent))
		case 2:
			s.fields = s.fields[:0]
			s.elements(func(int) {
				if s.fields = append(s.fields, s.field()); len(s.fields) > maxFields {
					s.fail("structure %s has more fields than any has", st.Name)
				}
			})
			st.Fields = append(make([]Field, 0, len(s.fields)), s.fields...)
		default:
			s.skip(0)
		}
	})
	if s.err != nil {
		return
	}
	if n != 3 || st.Name == "" {
		s.fail("structure %s: %d elements where 3 belong", st.Name, n)
		return
	}
	if _, twice := p.structs[st.Name]; twice {
		s.fail("structure %s is defined twice", st.Name)
		return
	}
	if len(p.structs) == maxStructs {
		s.fail("more structures than any kernel has")
		return
	}
	st.sort()
	p.structs[st.Name] = st
}

// field reads [name, offset, type, {options}].
func (s *scanner) field() (f Field) {
	var typ, of string
	var start, end int64 = -1, 0
	n := 0
	s.elements(func(i int) {
		switch n++; i {
		case 0:
			f.Name = s.str()
		case 1:
			f.Offset = uint32(s.number(0, maxExtent))
		case 2:
			typ = s.str()
		case 3:
			s.each(func(key string) {
				switch key {
				case "size":
					f.Size = uint32(s.number(0, maxExtent))
				case "type":
					of = s.str()
				case "count":
					f.Count = s.u32()
				case "start_bit":
					start = s.number(0, 63)
				case "end_bit":
					end = s.number(1, 64)
				default:
					s.skip(0)
				}
			})
		default:
			s.skip(0)
		}
	})
	switch {
	case s.err != nil:
	case n != 4:
		s.fail("field %s: %d elements where 4 belong", f.Name, n)
	case typ == "BitField":
		if start < 0 || start >= end {
			s.fail("field %s: a bit field without proper bits", f.Name)
			return f
		}
		f.Type, f.BitOffset, f.BitCount = of, uint8(start), uint8(end-start)
	case typ == "Pointer":
		f.Type, f.Target = "pointer", of
	case typ == "Array":
		f.Type, f.Target = "array", of
	default:
		f.Type = typ
	}
	return f
}

// check returns an error if a profile that was read breaks a rule that holds for every
// profile.
func (p *Profile) check() error {
	if len(p.structs) == 0 || len(p.symbols) == 0 && p.GUID != NoGUID {
		return errors.New("holds no structures or no symbols")
	}
	return p.checkHead()
}

// checkHead does what check does, for the profile's description of itself.
func (p *Profile) checkHead() error {
	if err := p.Identity.Check(); err != nil {
		return err
	}
	switch p.Arch {
	case ArchX64, ArchX86, ArchARM64:
	default:
		return fmt.Errorf("architecture %q is none of x64, x86 and arm64", p.Arch)
	}
	for _, s := range p.Sources {
		if err := s.Verified.check(); err != nil {
			return err
		}
	}
	return nil
}
