package tomlfile

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// MaxSize bounds a file, in bytes.
const MaxSize = 1 << 20

// Error is one thing that is wrong with a file.
type Error struct {
	File string
	Line int    // from 1; 0 if the error has no line
	Key  string // dotted, with indexes from 0 behind arrays: "rule[2].action"; "" for none
	Err  error
}

// Error implements error.
func (e *Error) Error() string {
	s := e.File
	if e.Line > 0 {
		s += fmt.Sprintf(":%d", e.Line)
	}
	if e.Key != "" {
		s += ": " + e.Key
	}
	return s + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Errors is everything that is wrong with a file, in the order of its lines.
type Errors []*Error

// Error implements error, with one line for each mistake.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, x := range e {
		lines[i] = x.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap lets errors.Is and errors.As see each of them.
func (e Errors) Unwrap() []error {
	out := make([]error, len(e))
	for i := range e {
		out[i] = e[i]
	}
	return out
}

// File is a file that is being read. It is not safe for concurrent use.
type File struct {
	name   string
	lines  map[string]int // by key
	tables []*Table       // those that were asked for
	errs   Errors
}

// ErrWritable reports a file that everybody may write to.
var ErrWritable = errors.New("everybody may write to it: chmod o-w")

// Read reads a file of at most limit bytes, which is MaxSize for TOML. It refuses a file
// that everybody can write to with ErrWritable, because vmav does what the file says.
func Read(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil {
		return nil, err
	} else if st.Mode().IsRegular() && st.Mode().Perm()&0o002 != 0 {
		return nil, fmt.Errorf("read %s: %w", path, ErrWritable)
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		return nil, fmt.Errorf("read %s: it is larger than %d bytes", path, limit)
	}
	return data, err
}

// Parse reads the text of a file. Messages use name as the file's. The caller asks the
// table for the keys that it knows, and then calls Done.
func Parse(name string, data []byte) (f *File, root *Table, err error) {
	values := make(map[string]any)
	if len(data) > MaxSize {
		return nil, nil, fmt.Errorf("%s: it is larger than %d bytes", name, MaxSize)
	}
	if err := toml.Unmarshal(data, &values); err != nil {
		out := &Error{File: name, Err: err}
		if at := new(toml.DecodeError); errors.As(err, &at) {
			out.Line, _ = at.Position()
			out.Err = errors.New(strings.TrimPrefix(at.Error(), "toml: "))
		}
		if out.Line == 0 { // the library gives no place for this error only
			out.Err = errors.New(strings.TrimPrefix(out.Err.Error(), "toml: "))
			_, out.Line = lines(data)
		}
		return nil, nil, Errors{out}
	}
	f = &File{name: name}
	f.lines, _ = lines(data)
	return f, f.table("", values), nil
}

func (f *File) table(path string, values map[string]any) *Table {
	t := &Table{file: f, path: path, values: values, known: make(map[string]bool)}
	f.tables = append(f.tables, t)
	return t
}

// fail notes an error of a key. If the key is missing, the line is that of its table.
func (f *File) fail(key string, err error) {
	line := f.lines[key]
	for at := key; line == 0 && at != ""; line = f.lines[at] {
		at = at[:max(strings.LastIndexByte(at, '.'), 0)]
	}
	f.errs = append(f.errs, &Error{File: f.name, Line: line, Key: key, Err: err})
}

// errUnknown reports a key that nobody asked for.
var errUnknown = errors.New("unknown key")

// Done returns everything that is wrong with the file, as Errors, or nil.
func (f *File) Done() error {
	for _, t := range f.tables {
		for _, key := range slices.Sorted(maps.Keys(t.values)) {
			if !t.known[key] {
				f.fail(t.join(key), errUnknown)
			}
		}
	}
	if len(f.errs) == 0 {
		return nil
	}
	slices.SortStableFunc(f.errs, func(a, b *Error) int { return cmp.Compare(a.Line, b.Line) })
	return f.errs
}
