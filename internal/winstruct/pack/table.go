package pack

import (
	"encoding/binary"
	"fmt"
)

var be = binary.BigEndian

// table is a list of byte strings, any of which can be had without reading the others.
type table struct {
	what string // what it has, for errors
	ends []byte // 32 bits for each item
	data []byte
}

func (t *table) len() int { return len(t.ends) / 4 }

// at returns item i. It is part of the file.
func (t *table) at(i uint64) ([]byte, error) {
	if i >= uint64(t.len()) {
		return nil, corrupt("%s %d of %d", t.what, i, t.len())
	}
	start, end := uint32(0), be.Uint32(t.ends[4*i:])
	if i > 0 {
		start = be.Uint32(t.ends[4*i-4:])
	}
	if start > end || uint64(end) > uint64(len(t.data)) {
		return nil, corrupt("%s %d lies at %d to %d of %d bytes", t.what, i, start, end, len(t.data))
	}
	return t.data[start:end], nil
}

// name returns an item that is text.
func (t *table) name(i uint64) (string, error) {
	b, err := t.at(i)
	if err == nil && len(b) > maxName {
		err = corrupt("%s %d has %d bytes", t.what, i, len(b))
	}
	if err != nil {
		return "", err
	}
	return string(b), nil
}

// cutTable takes a table from the front of a file's rest.
func cutTable(rest []byte, what string, most int) (table, []byte, error) {
	if len(rest) < 4 {
		return table{}, nil, corrupt("no table of %ss", what)
	}
	n := uint64(be.Uint32(rest))
	rest = rest[4:]
	if n > uint64(most) || 4*n > uint64(len(rest)) {
		return table{}, nil, corrupt("%d %ss in %d bytes, at most %d are believed", n, what, len(rest), most)
	}
	t := table{what: what, ends: rest[:4*n]}
	rest = rest[4*n:]
	if n > 0 {
		size := be.Uint32(t.ends[4*n-4:])
		if uint64(size) > uint64(len(rest)) {
			return table{}, nil, corrupt("%ss of %d bytes in %d", what, size, len(rest))
		}
		t.data, rest = rest[:size], rest[size:]
	}
	return t, rest, nil
}

// appendTable writes a table.
func appendTable(b []byte, items []string) ([]byte, error) {
	b = be.AppendUint32(b, uint32(len(items)))
	end := uint64(0)
	for _, s := range items {
		if end += uint64(len(s)); end > MaxSize {
			return nil, fmt.Errorf("a pack of more than %d bytes", MaxSize)
		}
		b = be.AppendUint32(b, uint32(end))
	}
	for _, s := range items {
		b = append(b, s...)
	}
	return b, nil
}

// numbers reads varints one after the other.
type numbers struct {
	what string
	rest []byte
	err  error
}

func (n *numbers) next() uint64 {
	if n.err != nil {
		return 0
	}
	v, size := binary.Uvarint(n.rest)
	if size <= 0 {
		n.err = corrupt("%s: it is cut off", n.what)
		return 0
	}
	n.rest = n.rest[size:]
	return v
}

// more reports whether there is another number.
func (n *numbers) more() bool { return n.err == nil && len(n.rest) > 0 }
