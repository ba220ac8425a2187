package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// parseVtypes reads the definitions of structures that a file assigns to its one variable:
// a Python literal of dictionaries, lists, strings and integers, with dict(name = value)
// for options.
func parseVtypes(text string) (map[string]any, error) {
	_, text, ok := strings.Cut(text, "=")
	if !ok {
		return nil, errors.New("nothing is assigned")
	}
	p := &literal{text: text}
	v, err := p.value(0)
	if err != nil {
		return nil, fmt.Errorf("byte %d: %w", p.at, err)
	}
	defs, ok := v.(map[string]any)
	if !ok || len(defs) < 100 {
		return nil, errors.New("these are no definitions of a kernel")
	}
	return defs, nil
}

type literal struct {
	text string
	at   int
}

func (p *literal) peek() byte {
	for p.at < len(p.text) && strings.IndexByte(" \t\r\n", p.text[p.at]) >= 0 {
		p.at++
	}
	if strings.HasPrefix(p.text[p.at:], "u'") {
		p.at++ // a string like any other
	}
	if p.at == len(p.text) {
		return 0
	}
	return p.text[p.at]
}

func (p *literal) take(c byte) bool {
	if p.peek() != c {
		return false
	}
	p.at++
	return true
}

func (p *literal) expect(c byte) error {
	if !p.take(c) {
		return fmt.Errorf("%q is missing", string(c))
	}
	return nil
}

// value reads one literal, or fails if there is none.
func (p *literal) value(depth int) (any, error) {
	if depth > 16 {
		return nil, errors.New("nested too deeply")
	}
	switch c := p.peek(); {
	case c == '{':
		p.at++
		return p.pairs('}', ':', depth)
	case c == '[':
		p.at++
		list := []any{}
		for !p.take(']') {
			v, err := p.value(depth + 1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
			if !p.take(',') && p.peek() != ']' {
				return nil, errors.New("a list does not end")
			}
		}
		return list, nil
	case c == '\'':
		p.at++
		s, _, ok := strings.Cut(p.text[p.at:], "'") // as it stands: escapes are in names of constants only
		if !ok || strings.Contains(s, "\n") {
			return nil, errors.New("a string does not end")
		}
		p.at += len(s) + 1
		return s, nil
	case c == '-' || c >= '0' && c <= '9':
		return strconv.ParseInt(p.word(), 0, 64)
	}
	word := p.word()
	if word != "dict" {
		return nil, fmt.Errorf("%q is no literal", word)
	}
	if err := p.expect('('); err != nil {
		return nil, err
	}
	return p.pairs(')', '=', depth)
}

// pairs reads names with values; names that are numbers become text.
func (p *literal) pairs(end, between byte, depth int) (map[string]any, error) {
	out := make(map[string]any)
	for !p.take(end) {
		name := ""
		if c := p.peek(); c == '\'' || c == '-' || c >= '0' && c <= '9' {
			v, err := p.value(depth + 1)
			if err != nil {
				return nil, err
			}
			name = fmt.Sprint(v)
		} else if name = p.word(); name == "" {
			return nil, errors.New("a name is missing")
		}
		if err := p.expect(between); err != nil {
			return nil, err
		}
		v, err := p.value(depth + 1)
		if err != nil {
			return nil, err
		}
		out[name] = v
		if !p.take(',') && p.peek() != end {
			return nil, errors.New("a dictionary does not end")
		}
	}
	return out, nil
}

func (p *literal) word() string {
	start := p.at
	for p.at < len(p.text) {
		c := p.text[p.at]
		if c != '-' && c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			break
		}
		p.at++
	}
	return p.text[start:p.at]
}
