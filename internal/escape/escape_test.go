package escape

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestText(t *testing.T) {
	for in, want := range map[string]string{
		"notepad.exe":         "notepad.exe",
		"Grüße 日本":            "Grüße 日本",
		"a\x1b[2Jb":           `a\x1b[2Jb`,
		"a\r\nb\tc":           `a\x0d\x0ab\x09c`,
		"exe.\u202egpj":       `exe.\u{202e}gpj`,
		"zero\u200bwidth":     `zero\u{200b}width`,
		"\xff\xfe":            `\xff\xfe`,
		"no\u00a0break\u2028": `no\u{a0}break\u{2028}`,
		"":                    "",
	} {
		if got := Text(in); got != want {
			t.Errorf("Text(%q) = %q, want %q", in, got, want)
		}
	}
}

func FuzzText(f *testing.F) {
	f.Add("a\x1b[31m\u202e\xff")
	f.Fuzz(func(t *testing.T, s string) {
		got := Text(s)
		if !utf8.ValidString(got) || strings.ContainsAny(got, "\x1b\r\n\t\x00\u202e\u200b\u2028") {
			t.Fatalf("Text(%q) = %q", s, got)
		}
	})
}
