package main

import (
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"vmav.dev/vmav/internal/verdict"
)

// TestManualHasEveryOption holds the manual's form against the command line itself. That the
// whole page formats without a warning is seen by packaging/test.sh.
func TestManualHasEveryOption(t *testing.T) {
	app := newApp(io.Discard, io.Discard)
	app.Setup()
	var page strings.Builder
	if err := writeManual(&page, app); err != nil {
		t.Fatal(err)
	}
	// The text as a reader sees it: requests and escapes resolved.
	shown := strings.NewReplacer(`\-`, "-", `\e`, `\`, `\(dq`, `"`, `\&`, "").Replace(page.String())
	var walk func(path string, c *cli.Command)
	walk = func(path string, c *cli.Command) {
		if c.Hidden || c.Name == "help" {
			return
		}
		path += " " + c.Name
		_, section, ok := strings.Cut(shown, ".Ss \""+path)
		if !ok {
			t.Errorf("the manual has no section for %q", path)
			return
		}
		section, _, _ = strings.Cut(section, "\n.Ss ")
		for _, f := range c.VisibleFlags() {
			for _, name := range f.Names() {
				want := "Fl " + name
				if len(name) > 1 {
					want = "Fl -" + name
				}
				if name != "help" && name != "h" && !strings.Contains(section, want) {
					t.Errorf("%s: option %s is not in its section", path, name)
				}
			}
		}
		for _, s := range c.Subcommands {
			walk(path, s)
		}
	}
	for _, c := range app.Commands {
		walk("vmav", c)
	}
}

func TestManualEscapes(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"plain", "plain\n"},
		{".Dd is no request", "\\&.Dd is no request\n"},
		{"'quoted\n.so /etc/passwd", "\\&'quoted\n\\&.so /etc/passwd\n"},
		{`\Device\x --all …`, "\\eDevice\\ex \\-\\-all \\[u2026]\n"},
		{"One. Two (of 2.5). Three", "One.\nTwo (of 2.5).\nThree\n"},
		{`say "no"`, "say \\(dqno\\(dq\n"},
	} {
		var b strings.Builder
		manText(&b, c.in)
		if b.String() != c.want {
			t.Errorf("manText(%q) = %q, want %q", c.in, b.String(), c.want)
		}
	}
}

// keys are what the first group of a pattern matches in files of the project.
func keys(t *testing.T, pattern string, files ...string) map[string]bool {
	t.Helper()
	out := make(map[string]bool)
	for _, file := range files {
		text, err := os.ReadFile("../../" + file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(string(text), -1) {
			out[m[1]] = true
		}
	}
	if len(out) < 10 {
		t.Fatalf("%v: %d keys found, which cannot be all", files, len(out))
	}
	return out
}

// TestManualsOfFilesHaveEveryKey holds vmav.toml(5) against the settings as they are
// packaged, and vmav-policy(5) against what reads policies.
func TestManualsOfFilesHaveEveryKey(t *testing.T) {
	for _, c := range []struct {
		page  string
		known map[string]bool
	}{
		{"packaging/man/vmav.toml.5", keys(t, `(?m)^#?([a-z_]+) = `, "packaging/vmav.toml")},
		{"packaging/man/vmav-policy.5", keys(t, `(?:t, |t\.\w+\()"([a-z_]+)"[,)]`, "internal/policy/rule.go", "internal/policy/policy.go")},
	} {
		documented := keys(t, `(?m)^\.It Cm ([a-z_]+)$`, c.page)
		for _, word := range []string{"allow", "rule"} { // tables have headings of their own
			delete(c.known, word)
		}
		for key := range c.known {
			if !documented[key] {
				t.Errorf("%s does not describe the key %s", c.page, key)
			}
		}
		for key := range documented {
			if !c.known[key] && !slices.Contains(verdict.Actions(), key) {
				t.Errorf("%s describes %s, which is no key", c.page, key)
			}
		}
	}
}
