package tomlfile

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// settings has a value of each type, and defaults.
type settings struct {
	name  string
	on    bool
	n     int
	share float64
	keep  time.Duration
	size  int64
	words []string
	inner string
	rules []string
}

func read(t *testing.T, text string) (settings, error) {
	t.Helper()
	s := settings{name: "default", n: 7}
	f, root, err := Parse("x.toml", []byte(text))
	if err != nil {
		return s, err
	}
	root.String("name", &s.name, OneOf("default", "other", "third"))
	root.Bool("on", &s.on)
	root.Int("n", &s.n, 1, 10)
	root.Share("share", &s.share)
	root.Duration("keep", &s.keep, time.Second, 100*day)
	root.Size("size", &s.size, 1, 1<<40)
	root.Strings("words", &s.words, nil)
	root.Table("inner").String("name", &s.inner, nil)
	for _, r := range root.Tables("rule") {
		name := ""
		r.String("name", &name, nil)
		if name == "" {
			r.Fail("name", "it has none")
		}
		s.rules = append(s.rules, name)
	}
	return s, f.Done()
}

func TestValues(t *testing.T) {
	got, err := read(t, `
name = "other"
on = true
n = 10
share = 1
keep = "30d"
size = "2G"
words = "one"
inner = { name = "x" }
[[rule]]
name = "a"
[[rule]]
name = "b"
`)
	if err != nil {
		t.Fatal(err)
	}
	if got.name != "other" || !got.on || got.n != 10 || got.share != 1 || got.keep != 30*day || got.size != 2<<30 ||
		!slices.Equal(got.words, []string{"one"}) || got.inner != "x" || !slices.Equal(got.rules, []string{"a", "b"}) {
		t.Errorf("%+v", got)
	}
	if got, err = read(t, ""); err != nil || got.name != "default" || got.n != 7 || got.words != nil {
		t.Errorf("of an empty file: %+v, %v", got, err)
	}
}

func TestErrorsNameFileLineKeyAndCause(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"name = 'other'\nnme = 1", `x.toml:2: nme: unknown key`},
		{"\n\nname = 7", `x.toml:3: name: it is an integer, not a string`},
		{"name = 'none'", `x.toml:1: name: "none": known are default, other and third`},
		{"n = 11", `x.toml:1: n: 11: 1 to 10 are possible`},
		{"n = 1.5", `x.toml:1: n: it is a number with a fraction, not an integer`},
		{"on = 'yes'", `x.toml:1: on: it is a string, not true or false`},
		{"share = 2", `x.toml:1: share: 2: it is a share between 0 and 1`},
		{"share = nan", `x.toml:1: share: NaN: it is a share`},
		{"share = []", `x.toml:1: share: it is a list, not a number`},
		{"keep = '5 years'", `x.toml:1: keep: "5 years" is no duration`},
		{"keep = '-5s'", `x.toml:1: keep: "-5s" is no duration`},
		{"keep = '1ms'", `x.toml:1: keep: "1ms": 1s to 100d are possible`},
		{"keep = 5", `x.toml:1: keep: it is an integer, not a duration such as`},
		{"size = '5MB'", `x.toml:1: size: "5MB" is no size`},
		{"size = '9999999T'", `x.toml:1: size: "9999999T" is no size`},
		{"size = '2T'", `x.toml:1: size: "2T": 1 to 1T are possible`},
		{"words = [\n'a',\n 1,\n'b']", `x.toml:3: words[1]: it is an integer, not a string`},
		{"words = 1979-05-27", `x.toml:1: words: it is a date or time, not a string`},
		{"[inner]\n\nname = []", `x.toml:3: inner.name: it is a list, not a string`},
		{"inner.nme = 1", `x.toml:1: inner.nme: unknown key`},
		{"inner = 1", `x.toml:1: inner: it is an integer, not a table`},
		{"[other]", `x.toml:1: other: unknown key`},
		{"rule = 1", `x.toml:1: rule: it is an integer: [[rule]] begins each`},
		{"rule = [1]", `x.toml:1: rule[0]: it is an integer, not a table`},
		{"rule = [{name='a'},\n{name='b', nme=1}]", `x.toml:2: rule[1].nme: unknown key`},
		{"[[rule]]\nname='a'\n[[rule]]\n\n[[rule]]\nname='c'", `x.toml:3: rule[1].name: it has none`},
		{"[[rule]]\nname='a'\n[[rule]]\nname='b'\n[rule.inner]\nx=1", `x.toml:5: rule[1].inner: unknown key`},
		{"n = 1\nn = 2", `x.toml:2: `},
		{"n = ", `x.toml:1: `},
		{"\"\\u0041\" = 1", `x.toml:1: A: unknown key`},
		{"n = \"\"\"\n\n\"\"\"\nx = 1", `x.toml:4: x: unknown key`},
	} {
		_, err := read(t, tt.text)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v, want %s", tt.text, err, tt.want)
		}
	}
}

func TestAllErrorsOfAFileAreFound(t *testing.T) {
	_, err := read(t, "on = 1\nx = 1\nn = 0\n")
	var all Errors
	if !errors.As(err, &all) || len(all) != 3 || all[0].Line != 1 || all[1].Line != 2 || all[2].Line != 3 {
		t.Errorf("%v", err)
	}
}

func TestUnitsRoundTrip(t *testing.T) {
	for _, s := range []string{"5ms", "90s", "1m", "1h30m", "2h", "1d", "30d"} {
		if d, err := ParseDuration(s); err != nil || FormatDuration(d) != s && s != "90s" {
			t.Errorf("%s: %v, %v", s, FormatDuration(d), err)
		}
	}
	for _, s := range []string{"0", "1", "1023", "1K", "512M", "5G", "3T"} {
		if n, err := ParseSize(s); err != nil || FormatSize(n) != s {
			t.Errorf("%s: %v, %v", s, FormatSize(n), err)
		}
	}
	for _, s := range []string{"", "M", "-1M", "1.5G", "1 G", "9223372036854775807K"} {
		if n, err := ParseSize(s); err == nil {
			t.Errorf("size %q is %d", s, n)
		}
	}
	for _, s := range []string{"", "d", "-1d", "1.5d", "99999999999d", "4294967295w"} {
		if d, err := ParseDuration(s); err == nil {
			t.Errorf("duration %q is %v", s, d)
		}
	}
}

func TestReadRefusesWhatEverybodyWrites(t *testing.T) {
	file := filepath.Join(t.TempDir(), "x.toml")
	if err := os.WriteFile(file, []byte("n = 1"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(file, MaxSize); err != nil {
		t.Error(err)
	}
	if err := os.Chmod(file, 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(file, MaxSize); !errors.Is(err, ErrWritable) {
		t.Errorf("%v, want ErrWritable", err)
	}
	if err := os.WriteFile(file, make([]byte, MaxSize+1), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(file, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Read(file, MaxSize); err == nil || !strings.Contains(err.Error(), "larger") {
		t.Errorf("of a large file: %v", err)
	}
}

// Whatever the text, there is no panic, and an error names the file.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"n = 1", "[[rule]]\nname = 'a'\n[rule.x]\ny = [{z=1}]", "\"\\u0041\".b = {'c'.d = [[1],[{}]]}",
		"a.b.c=1\r\n[a.d]\n[[a.e]]\n[[a.e.f]]\n[a.e.g]"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		_, err := read(t, string(data))
		var all Errors
		if err != nil && (!errors.As(err, &all) || !strings.HasPrefix(all[0].Error(), "x.toml")) {
			t.Errorf("%v", err)
		}
		for _, e := range all {
			if n := strings.Count(string(data), "\n") + 1; e.Line > n {
				t.Errorf("line %d of %d: %v", e.Line, n, e)
			}
		}
	})
}
