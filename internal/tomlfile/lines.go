package tomlfile

import (
	"bytes"
	"fmt"

	"github.com/pelletier/go-toml/v2/unstable"
)

// maxDepth bounds how deep inline values are nested, and how many parts a key has, for
// lines to be noted.
const maxDepth = 16

// lines returns the line of each key of a document, as far as the document can be
// parsed. twice is the line of the first key that comes a second time, 0 if there is
// none.
func lines(data []byte) (at map[string]int, twice int) {
	n := noter{lines: make(map[string]int), arrays: make(map[string]int), defined: make(map[string]bool), data: data}
	n.parser.Reset(data)
	prefix := ""
	for n.parser.NextExpression() {
		e := n.parser.Expression()
		switch e.Kind {
		case unstable.Table:
			prefix = n.note("", e)
			n.define(prefix)
		case unstable.ArrayTable:
			path := n.note("", e)
			prefix = fmt.Sprintf("%s[%d]", path, n.arrays[path])
			n.lines[prefix] = n.lines[path]
			n.arrays[path]++
		case unstable.KeyValue:
			path := n.note(prefix, e)
			n.define(path)
			n.value(path, e.Value(), 0)
		}
	}
	return n.lines, n.twice
}

type noter struct {
	parser unstable.Parser
	data   []byte
	lines  map[string]int
	arrays map[string]int // number of elements so far, by array of tables

	defined map[string]bool
	twice   int

	// The last line that was counted to, and its offset. Keys come in order.
	offset, line int
}

func (n *noter) define(path string) {
	if n.defined[path] && n.twice == 0 {
		n.twice = n.lines[path]
	}
	n.defined[path] = true
}

// note notes the line of an expression's key and returns the key's path. A part of the
// key that is an array of tables means its last table, unless it is the last part of the
// key.
func (n *noter) note(path string, e *unstable.Node) string {
	parts := 0
	for it := e.Key(); it.Next() && parts < maxDepth; parts++ {
		if count := n.arrays[path]; count > 0 {
			path = fmt.Sprintf("%s[%d]", path, count-1)
		}
		path = join(path, string(it.Node().Data))
		n.lines[path] = n.at(int(it.Node().Raw.Offset))
	}
	return path
}

func (n *noter) value(path string, v *unstable.Node, depth int) {
	if depth == maxDepth {
		return
	}
	switch v.Kind {
	case unstable.InlineTable:
		for it := v.Children(); it.Next(); {
			n.value(n.note(path, it.Node()), it.Node().Value(), depth+1)
		}
	case unstable.Array:
		i := 0
		for it := v.Children(); it.Next(); i++ {
			at := fmt.Sprintf("%s[%d]", path, i)
			n.lines[at] = n.lines[path]
			if o := int(it.Node().Raw.Offset); o > 0 {
				n.lines[at] = n.at(o)
			}
			n.value(at, it.Node(), depth+1)
		}
	}
}

// at returns the line of an offset.
func (n *noter) at(offset int) int {
	if offset < n.offset || n.line == 0 {
		n.offset, n.line = 0, 1
	}
	n.line += bytes.Count(n.data[n.offset:offset], []byte("\n"))
	n.offset = offset
	return n.line
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}
