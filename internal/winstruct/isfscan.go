package winstruct

import "math"

// parseISF reads the needed parts of a symbol file's text.
func parseISF(text []byte) (*isfFile, error) {
	s := &scanner{text: string(text)}
	f := &isfFile{bases: make(map[string]uint32), structs: make(map[string]isfStruct, 4096), enums: make(map[string]isfEnum, 512),
		symbols: make(map[string]uint64, 1<<15)}
	s.each(func(key string) {
		switch key {
		case "metadata":
			s.isfMetadata(f)
		case "base_types":
			s.each(func(name string) {
				s.each(func(key string) {
					if key == "size" {
						f.bases[name] = uint32(s.number(0, maxExtent))
					} else {
						s.skip(0)
					}
				})
			})
		case "user_types":
			s.each(func(name string) {
				f.structs[name] = s.isfStruct(name)
				if len(f.structs) > maxStructs {
					s.fail("more types than any kernel has")
				}
			})
		case "enums":
			s.each(func(name string) {
				f.enums[name] = s.isfEnum()
				if len(f.enums) > maxStructs {
					s.fail("more types than any kernel has")
				}
			})
		case "symbols":
			s.each(func(name string) {
				s.each(func(key string) {
					if key != "address" {
						s.skip(0)
					} else if at := s.number(math.MinInt64, math.MaxInt64); at >= 0 && at <= maxExtent {
						f.symbols[name] = uint64(at)
					}
				})
				if len(f.symbols) > maxSymbols {
					s.fail("more symbols than any kernel has")
				}
			})
		default:
			s.skip(0)
		}
	})
	if s.err == nil && s.peek() != 0 {
		s.fail("something behind the end")
	}
	return f, s.err
}

func (s *scanner) isfMetadata(f *isfFile) {
	s.each(func(key string) {
		switch key {
		case "format":
			f.format = s.str()
		case "windows":
			s.each(func(key string) {
				switch key {
				case "pdb":
					s.each(func(key string) {
						switch key {
						case "GUID":
							f.guid = s.str()
						case "age":
							f.age = s.u32()
						case "database":
							f.database = s.str()
						case "machine_type":
							f.machine = s.u32()
						default:
							s.skip(0)
						}
					})
				case "pe":
					s.each(func(key string) {
						switch key {
						case "major":
							f.version[0] = s.u32()
						case "minor":
							f.version[1] = s.u32()
						case "build":
							f.version[2] = s.u32()
						case "revision":
							f.version[3] = s.u32()
						default:
							s.skip(0)
						}
					})
				default:
					s.skip(0)
				}
			})
		default:
			s.skip(0)
		}
	})
}

func (s *scanner) isfStruct(name string) (u isfStruct) {
	s.each(func(key string) {
		switch key {
		case "size":
			u.size = uint32(s.number(0, maxExtent))
		case "fields":
			s.each(func(field string) {
				f := isfField{name: field}
				s.each(func(key string) {
					switch key {
					case "offset":
						f.offset = uint32(s.number(0, maxExtent))
					case "type":
						f.typ = s.isfType(0)
					default:
						s.skip(0)
					}
				})
				if u.fields = append(u.fields, f); len(u.fields) > maxFields {
					s.fail("structure %s has more fields than any has", name)
				}
			})
		default:
			s.skip(0)
		}
	})
	return u
}

func (s *scanner) isfType(depth int) (t isfType) {
	if depth > 32 {
		s.fail("a type nested too deeply")
		return t
	}
	if s.peek() == 'n' {
		s.skip(0) // null
		return t
	}
	s.each(func(key string) {
		switch key {
		case "kind":
			t.Kind = s.str()
		case "name":
			t.Name = s.str()
		case "subtype":
			sub := s.isfType(depth + 1)
			t.Subtype = &sub
		case "type":
			sub := s.isfType(depth + 1)
			t.Type = &sub
		case "count":
			t.Count = s.u32()
		case "bit_length":
			t.BitLength = uint8(s.number(0, 64))
		case "bit_position":
			t.BitPosition = uint8(s.number(0, 64))
		default:
			s.skip(0)
		}
	})
	return t
}

func (s *scanner) isfEnum() (e isfEnum) {
	e.constants = make(map[string]int64)
	s.each(func(key string) {
		switch key {
		case "size":
			e.size = uint32(s.number(0, maxExtent))
		case "constants":
			s.each(func(name string) { e.constants[name] = s.number(math.MinInt64, math.MaxInt64) })
		default:
			s.skip(0)
		}
	})
	return e
}
