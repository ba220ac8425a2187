package main

import (
	"io"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"
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
