package tomlfile

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Table is one table of a file. A table that is absent has no keys.
type Table struct {
	file   *File
	path   string
	values map[string]any
	known  map[string]bool
}

func (t *Table) join(key string) string { return join(t.path, key) }

// Line is the line that the table begins at; 0 for the file itself, and for one that is
// absent.
func (t *Table) Line() int { return t.file.lines[t.path] }

// Has tells whether a key is there.
func (t *Table) Has(key string) bool { _, ok := t.values[key]; return ok }

// Empty tells whether a key is there with a list of nothing.
func (t *Table) Empty(key string) bool {
	list, ok := t.values[key].([]any)
	return ok && len(list) == 0
}

// Fail notes that a key's value is wrong.
func (t *Table) Fail(key string, format string, args ...any) {
	t.file.fail(t.join(key), fmt.Errorf(format, args...))
}

// take returns a key's value, and false where there is none.
func (t *Table) take(key string) (any, bool) {
	t.known[key] = true
	v, ok := t.values[key]
	return v, ok
}

// typed reads a key's value of type T into into, where it is there; what says of which
// type it must be.
func typed[T any](t *Table, key string, into *T, what string) bool {
	v, ok := t.take(key)
	if !ok {
		return false
	}
	x, ok := v.(T)
	if !ok {
		t.Fail(key, "it is %s, not %s", kind(v), what)
		return false
	}
	*into = x
	return true
}

func kind(v any) string {
	switch v.(type) {
	case string:
		return "a string"
	case bool:
		return "a boolean"
	case int64:
		return "an integer"
	case float64:
		return "a number with a fraction"
	case []any:
		return "a list"
	case map[string]any:
		return "a table"
	}
	return "a date or time"
}

// String reads a string. Where it is not as check wants it, that is an error; check may
// be nil.
func (t *Table) String(key string, into *string, check func(string) error) {
	var s string
	if !typed(t, key, &s, "a string") {
		return
	}
	if check != nil {
		if err := check(s); err != nil {
			t.Fail(key, "%w", err)
			return
		}
	}
	*into = s
}

// Bool reads a boolean.
func (t *Table) Bool(key string, into *bool) { typed(t, key, into, "true or false") }

// Int reads an integer from min to max.
func (t *Table) Int(key string, into *int, min, max int) {
	var n int64
	if !typed(t, key, &n, "an integer") {
		return
	}
	if n < int64(min) || n > int64(max) {
		t.Fail(key, "%d: %d to %d are possible", n, min, max)
		return
	}
	*into = int(n)
}

// Share reads a number from 0 to 1.
func (t *Table) Share(key string, into *float64) {
	v, ok := t.take(key)
	if !ok {
		return
	}
	var x float64
	switch n := v.(type) {
	case float64:
		x = n
	case int64:
		x = float64(n)
	default:
		t.Fail(key, "it is %s, not a number", kind(v))
		return
	}
	if !(x >= 0 && x <= 1) {
		t.Fail(key, "%v: it is a share between 0 and 1", x)
		return
	}
	*into = x
}

// Duration reads a time, as ParseDuration does, from min to max.
func (t *Table) Duration(key string, into *time.Duration, min, max time.Duration) {
	var s string
	if !typed(t, key, &s, `a duration such as "90s" or "30d"`) {
		return
	}
	d, err := ParseDuration(s)
	if err == nil && (d < min || d > max) {
		err = fmt.Errorf("%q: %s to %s are possible", s, FormatDuration(min), FormatDuration(max))
	}
	if err != nil {
		t.Fail(key, "%w", err)
		return
	}
	*into = d
}

// Size reads a size, as ParseSize does, from min to max bytes.
func (t *Table) Size(key string, into *int64, min, max int64) {
	var s string
	if !typed(t, key, &s, `a size such as "512M" or "2G"`) {
		return
	}
	n, err := ParseSize(s)
	if err == nil && (n < min || n > max) {
		err = fmt.Errorf("%q: %s to %s are possible", s, FormatSize(min), FormatSize(max))
	}
	if err != nil {
		t.Fail(key, "%w", err)
		return
	}
	*into = n
}

// maxList bounds a list.
const maxList = 10000

// Strings reads a list of strings; a string alone is a list of one. Each must be as
// check wants it, which may be nil.
func (t *Table) Strings(key string, into *[]string, check func(string) error) {
	out := []string{}
	for at, v := range t.list(key) {
		s, ok := v.(string)
		if !ok {
			t.file.fail(at, fmt.Errorf("it is %s, not a string", kind(v)))
			return
		}
		if check != nil {
			if err := check(s); err != nil {
				t.file.fail(at, err)
				continue
			}
		}
		out = append(out, s)
	}
	if t.Has(key) {
		*into = out
	}
}

// list yields the elements of a list with the keys that they have, or what is there in
// the place of a list.
func (t *Table) list(key string) func(func(string, any) bool) {
	return func(yield func(string, any) bool) {
		v, ok := t.take(key)
		if !ok {
			return
		}
		list, ok := v.([]any)
		if !ok {
			yield(t.join(key), v)
			return
		}
		if len(list) > maxList {
			t.Fail(key, "a list of %d: %d are possible", len(list), maxList)
			return
		}
		for i, v := range list {
			if !yield(fmt.Sprintf("%s[%d]", t.join(key), i), v) {
				return
			}
		}
	}
}

// Values yields the elements of a list of any types, or of what stands in its place as
// the one element, with a function that fails it.
func (t *Table) Values(key string) func(func(v any, fail func(error)) bool) {
	return func(yield func(any, func(error)) bool) {
		for at, v := range t.list(key) {
			if !yield(v, func(err error) { t.file.fail(at, err) }) {
				return
			}
		}
	}
}

// Table returns the table of a key; an empty one where there is none.
func (t *Table) Table(key string) *Table {
	var values map[string]any
	typed(t, key, &values, "a table")
	return t.file.table(t.join(key), values)
}

// Tables returns the tables of an array of them.
func (t *Table) Tables(key string) []*Table {
	var out []*Table
	v, ok := t.take(key)
	if !ok {
		return nil
	}
	list, ok := v.([]any)
	if !ok || len(list) > maxList {
		t.Fail(key, "it is %s: [[%s]] begins each", kind(v), t.join(key))
		return nil
	}
	for i, v := range list {
		at := fmt.Sprintf("%s[%d]", t.join(key), i)
		values, ok := v.(map[string]any)
		if !ok {
			t.file.fail(at, fmt.Errorf("it is %s, not a table", kind(v)))
			continue
		}
		out = append(out, t.file.table(at, values))
	}
	return out
}

// OneOf is a check of strings: one of words.
func OneOf(words ...string) func(string) error {
	return func(s string) error {
		if slices.Contains(words, s) {
			return nil
		}
		last := len(words) - 1
		return fmt.Errorf("%q: known are %s and %s", s, strings.Join(words[:last], ", "), words[last])
	}
}

// AbsolutePath is a check of strings: the path of a file that does not depend on where
// vmav was started.
func AbsolutePath(s string) error {
	if !filepath.IsAbs(s) || strings.ContainsRune(s, 0) {
		return fmt.Errorf("%q is no absolute path", s)
	}
	return nil
}
