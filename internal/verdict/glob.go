package verdict

import (
	"fmt"
	"regexp"
	"strings"
	"unicode/utf8"
)

// maxPattern bounds a pattern, in bytes.
const maxPattern = 1024

// Glob is a pattern for text. Upper and lower case are equal, * matches any characters
// and ? matches one. No other character is special, so paths of Windows need no escapes.
// The time to match is linear in the text, whatever the pattern.
type Glob struct {
	text string
	path bool
	re   *regexp.Regexp
}

// NewGlob reads a pattern.
func NewGlob(text string) (Glob, error) { return newGlob(text, false) }

// NewPathGlob reads a pattern for paths. In it * and ? do not match a backslash, and **
// matches any characters.
//
// A pattern that begins with \Device\ or a drive is compared with the whole path. Any
// other that begins with a backslash, as \Windows\System32\*.dll, is compared with the
// path without its volume. The name of a file object never has a volume.
func NewPathGlob(text string) (Glob, error) {
	if !strings.HasPrefix(text, `\`) && !strings.HasPrefix(text, "*") && !drive(text) {
		return Glob{}, fmt.Errorf(`pattern %q: a path begins with a backslash, a drive or a star`, text)
	}
	return newGlob(text, true)
}

func newGlob(text string, path bool) (Glob, error) {
	switch {
	case text == "":
		return Glob{}, fmt.Errorf("an empty pattern matches nothing")
	case len(text) > maxPattern:
		return Glob{}, fmt.Errorf("a pattern of %d bytes: %d are possible", len(text), maxPattern)
	case !utf8.ValidString(text):
		return Glob{}, fmt.Errorf("pattern %q is no UTF-8", text)
	}
	star, one := `.*`, `.`
	if path {
		star, one = `[^\\]*`, `[^\\]`
	}
	var b strings.Builder
	b.WriteString(`(?is)\A`)
	for rest := text; rest != ""; {
		at := strings.IndexAny(rest, "*?")
		if at < 0 {
			b.WriteString(regexp.QuoteMeta(rest))
			break
		}
		b.WriteString(regexp.QuoteMeta(rest[:at]))
		switch {
		case strings.HasPrefix(rest[at:], "**"):
			b.WriteString(`.*`)
			at++
		case rest[at] == '*':
			b.WriteString(star)
		default:
			b.WriteString(one)
		}
		rest = rest[at+1:]
	}
	b.WriteString(`\z`)
	re, err := regexp.Compile(b.String())
	if err != nil {
		return Glob{}, fmt.Errorf("pattern %q: %w", text, err)
	}
	return Glob{text, path, re}, nil
}

// String returns the pattern as it was written.
func (g Glob) String() string { return g.text }

// Match tells whether the pattern matches a text.
func (g Glob) Match(s string) bool {
	if g.re == nil || s == "" {
		return false
	}
	if !g.path {
		return g.re.MatchString(s)
	}
	if whole(g.text) {
		return g.re.MatchString(s)
	}
	if hasPrefix(s, devicePrefix) {
		s = volumePath(s)
	}
	return strings.HasPrefix(s, `\`) && g.re.MatchString(s)
}

// hasPrefix is strings.HasPrefix with upper and lower case equal.
func hasPrefix(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}

// whole tells whether a pattern for paths is compared with whole paths.
func whole(pattern string) bool {
	return !strings.HasPrefix(pattern, `\`) || hasPrefix(pattern, devicePrefix)
}

const devicePrefix = `\Device\`

// drive tells whether a path begins with a drive: C:\.
func drive(path string) bool {
	return len(path) >= 3 && path[1] == ':' && path[2] == '\\'
}

// volumePath returns an NT path without its volume: \Windows\x for
// \Device\HarddiskVolume2\Windows\x. It returns "" for a path of any other form.
func volumePath(path string) string {
	const volume = devicePrefix + `HarddiskVolume`
	if !hasPrefix(path, volume) {
		return ""
	}
	rest := path[len(volume):]
	at := strings.IndexByte(rest, '\\')
	if at < 1 || strings.Trim(rest[:at], "0123456789") != "" {
		return ""
	}
	return rest[at:]
}

// literal returns the part of a pattern before its first star or question mark. all is
// true if the pattern has neither.
func (g Glob) literal() (prefix string, all bool) {
	at := strings.IndexAny(g.text, "*?")
	if at < 0 {
		return g.text, true
	}
	return g.text[:at], false
}

// covers tells whether g certainly matches everything that o matches. False means that
// this is not known.
func (g Glob) covers(o Glob) bool {
	if strings.EqualFold(g.text, o.text) {
		return true
	}
	any := "*"
	if g.path {
		any = "**"
		if g.text != any && whole(g.text) != whole(o.text) {
			return false // they are compared with different texts
		}
	}
	prefix, _ := g.literal()
	rest, all := o.literal()
	if g.text[len(prefix):] == any {
		return hasPrefix(rest, prefix)
	}
	return all && g.re.MatchString(o.text)
}
