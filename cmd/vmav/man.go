package main

import (
	"fmt"
	"io"
	"regexp"
	"strings"

	"github.com/urfave/cli/v2"
)

// manCommand prints the part of vmav(1) that comes from the commands' own help, so that
// page and help cannot differ. packaging/build.sh puts it into packaging/man/vmav.1.in.
func manCommand(e *env) *cli.Command {
	return command(&cli.Command{
		Name:        "man",
		Usage:       "print the commands and options in the form of a manual page",
		Description: "The output is mdoc(7), the sections GLOBAL OPTIONS and COMMANDS of vmav(1).",
		Hidden:      true,
		Action: func(c *cli.Context) error {
			return writeManual(e.stdout, c.App)
		},
	})
}

func writeManual(w io.Writer, app *cli.App) error {
	var b strings.Builder
	b.WriteString(".Sh GLOBAL OPTIONS\n")
	manFlags(&b, app.VisibleFlags())
	b.WriteString(".Sh COMMANDS\n")
	for _, c := range app.VisibleCommands() {
		manSection(&b, app.Name, c)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// manSection describes a command, then its subcommands.
func manSection(b *strings.Builder, parent string, c *cli.Command) {
	if c.Name == "help" { // the library's own
		return
	}
	name := parent + " " + c.Name
	usage := name
	if len(c.VisibleFlags()) > 0 {
		usage += " [options]"
	}
	if len(c.Subcommands) > 0 {
		usage += " command"
	}
	if c.ArgsUsage != "" {
		usage += " " + c.ArgsUsage
	}
	fmt.Fprintf(b, ".Ss \"%s\"\n", roff(usage))
	manText(b, strings.ToUpper(c.Usage[:1])+c.Usage[1:]+".")
	for _, p := range strings.Split(strings.TrimSpace(c.Description), "\n\n") {
		if p == "" || p == exitStatusHelp { // said once, in EXIT STATUS
			continue
		}
		manParagraph(b, p)
	}
	manFlags(b, c.VisibleFlags())
	for _, s := range c.Subcommands {
		if !s.Hidden {
			manSection(b, name, s)
		}
	}
}

// manParagraph writes a paragraph. It keeps the lines of tables and examples, which are
// indented.
func manParagraph(b *strings.Builder, p string) {
	if !strings.HasPrefix(p, " ") && !strings.Contains(p, "\n ") {
		b.WriteString(".Pp\n")
		manText(b, p)
		return
	}
	b.WriteString(".Bd -literal\n")
	manLines(b, p)
	b.WriteString(".Ed\n")
}

func manFlags(b *strings.Builder, flags []cli.Flag) {
	open := false
	for _, f := range flags {
		d, ok := f.(cli.DocGenerationFlag)
		if !ok || f.Names()[0] == "help" || f.Names()[0] == "version" {
			continue
		}
		if !open {
			b.WriteString(".Bl -tag -width Ds\n")
			open = true
		}
		placeholder, usage := unquote(d.GetUsage())
		var names []string
		for _, n := range f.Names() {
			if len(n) > 1 {
				n = "\\-" + roff(n)
			}
			item := "Fl " + n
			if d.TakesValue() {
				item += " Ar " + roff(placeholder)
			}
			names = append(names, item)
		}
		fmt.Fprintf(b, ".It %s\n", strings.Join(names, " , "))
		if def := d.GetDefaultText(); d.TakesValue() && def != "" {
			usage += " (default: " + def + ")"
		}
		if env := d.GetEnvVars(); len(env) > 0 {
			usage += " [$" + strings.Join(env, ", $") + "]"
		}
		manText(b, usage)
	}
	if open {
		b.WriteString(".El\n")
	}
}

// unquote returns the name of an option's value and the usage without the quotes, as the
// help does.
func unquote(usage string) (placeholder, text string) {
	before, rest, ok := strings.Cut(usage, "`")
	if !ok {
		return "value", usage
	}
	name, after, ok := strings.Cut(rest, "`")
	if !ok {
		return "value", usage
	}
	return name, before + name + after
}

// sentence matches the end of a sentence and the beginning of the next, which in mdoc
// begins on a new line.
var sentence = regexp.MustCompile(`([.!?]\)?) +([A-Z])`)

// manText writes running text.
func manText(b *strings.Builder, text string) {
	manLines(b, sentence.ReplaceAllString(text, "$1\n$2"))
}

// manLines writes lines of text so that none is taken for a request.
func manLines(b *strings.Builder, text string) {
	for _, line := range strings.Split(text, "\n") {
		if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
			b.WriteString(`\&`)
		}
		b.WriteString(roff(line))
		b.WriteByte('\n')
	}
}

// roff escapes the characters that have a meaning in a manual page. A hyphen remains one
// that can be copied into a shell.
func roff(s string) string {
	var b strings.Builder
	for _, r := range s {
		switch {
		case r == '\\':
			b.WriteString(`\e`)
		case r == '-':
			b.WriteString(`\-`)
		case r == '"':
			b.WriteString(`\(dq`)
		case r > 0x7e:
			fmt.Fprintf(&b, `\[u%04X]`, r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}
