package tomlfile

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Table is one table of a file. An absent table has no keys.
type Table struct {
	file   *File
	path   string
	values map[string]any
	known  map[string]bool
}

func (t *Table) join(key string) string { return join(t.path, key) }

// Line is the line that the table begins at. It is 0 for the file itself, and for an
// absent table.
func (t *Table) Line() int { return t.file.lines[t.path] }

// Has tells whether the table has a key.
func (t *Table) Has(key string) bool { _, ok := t.values[key]; return ok }

// Empty tells whether the value of a key is an empty list.
func (t *Table) Empty(key string) bool {
	list, ok := t.values[key].([]any)
	return ok && len(list) == 0
}

// Fail notes that a key's value is wrong.
func (t *Table) Fail(key string, format string, args ...any) {
	t.file.fail(t.join(key), fmt.Errorf(format, args...))
}

// take returns the value of a key, and whether there is one.
func (t *Table) take(key string) (any, bool) {
	t.known[key] = true
	v, ok := t.values[key]
	return v, ok
}

// typed reads the value of a key, if there is one, into into. what names the type for
// the error.
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

// String reads a string, and notes the error of check. check may be nil.
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

// Duration reads a duration from min to max, as ParseDuration does.
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

// Size reads a size from min to max bytes, as ParseSize does.
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

// Strings reads a list of strings. A single string counts as a list of one. It notes the
// error of check for each. check may be nil.
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

// list yields the elements of a list with their keys. A value that is no list is yielded
// as the only element.
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

// Values yields the elements of a list, whatever their types, each with a function that
// notes an error for it. A value that is no list is yielded as the only element.
func (t *Table) Values(key string) func(func(v any, fail func(error)) bool) {
	return func(yield func(any, func(error)) bool) {
		for at, v := range t.list(key) {
			if !yield(v, func(err error) { t.file.fail(at, err) }) {
				return
			}
		}
	}
}

// Table returns the table of a key. If there is none, the table is an empty one.
func (t *Table) Table(key string) *Table {
	var values map[string]any
	typed(t, key, &values, "a table")
	return t.file.table(t.join(key), values)
}

// Tables returns the tables of an array of tables.
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

// OneOf returns a check that a string is one of words.
func OneOf(words ...string) func(string) error {
	return func(s string) error {
		if slices.Contains(words, s) {
			return nil
		}
		last := len(words) - 1
		return fmt.Errorf("%q: known are %s and %s", s, strings.Join(words[:last], ", "), words[last])
	}
}

// AbsolutePath checks that a string is an absolute path. A relative one would depend on
// where vmav was started.
func AbsolutePath(s string) error {
	if !filepath.IsAbs(s) || strings.ContainsRune(s, 0) {
		return fmt.Errorf("%q is no absolute path", s)
	}
	return nil
}
