package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/pe"
	"vmav.dev/vmav/internal/report"
	"vmav.dev/vmav/internal/sweep"
)

func dumpCommand(e *env) *cli.Command {
	return command(&cli.Command{
		Name:      "dump",
		Usage:     "write one rebuilt file, and how far it is the file that was loaded",
		ArgsUsage: "DOMAIN PID",
		Description: "The program of the process, or the module that --module names, is written to FILE and its\n" +
			"fidelity record beside it to FILE.json. The file may be malicious: it is not made executable.\n" +
			"A file with parts missing is written, too; the exit status is then 2.",
		Flags: append([]cli.Flag{connectFlag(), imageFlag(),
			&cli.PathFlag{Name: "output", Aliases: []string{"o"}, Usage: "`FILE`; without it DOMAIN-PID-NAME in this directory"},
			&cli.StringFlag{Name: "module", Usage: "base `NAME` of the module, or its base address as 0x…"},
			&cli.BoolFlag{Name: "raw", Usage: "the mapped form as it is, not rebuilt"}}, profileFlags()...),
		Action:       func(c *cli.Context) error { return runDump(c, e) },
		BashComplete: completeDomains(e),
	})
}

func runDump(c *cli.Context, e *env) error {
	t, rest, done, err := openTarget(c)
	if err != nil {
		return err
	}
	defer done()
	if len(rest) != 1 {
		return errors.New("dump needs the pid of a process; vmav dump --help shows the usage")
	}
	g, err := t.guest(c, e)
	if err != nil {
		return err
	}
	procs, _, err := g.Processes(c.Context)
	if err != nil {
		return err
	}
	p, err := findProcess(procs, rest[0])
	if err != nil {
		return fmt.Errorf("%s: %w", t.describe(), err)
	}
	mods, problems, err := g.Modules(c.Context, p)
	if err != nil {
		return err
	}
	m, err := findModule(p, mods, c.String("module"))
	if err != nil {
		return fmt.Errorf("%s: process %d (%s): %w", t.describe(), p.PID, p.Name, errors.Join(append([]error{err}, asErrors(problems)...)...))
	}
	var cp sweep.Copy
	img, err := cp.Read(c.Context, g, p, m)
	if err != nil {
		return fmt.Errorf("%s: process %d (%s), image %s: %w", t.describe(), p.PID, p.Name, m.Name, err)
	}
	out := c.Path("output")
	if out == "" {
		out = fmt.Sprintf("%s-%d-%s", fileName(t.domain.Name), p.PID, fileName(m.Name))
	}
	if c.Bool("raw") {
		if err := writeNew(out, img.Mem); err != nil {
			return err
		}
		fmt.Fprintf(e.stdout, "%s: %d bytes as mapped at %#x\n", out, len(img.Mem), img.Base)
		return nil
	}
	file, err := pe.Rebuild(img, pe.Options{PreferredBase: m.OriginalBase})
	if err != nil {
		return fmt.Errorf("%s: process %d (%s), image %s: rebuild: %w", t.describe(), p.PID, p.Name, m.Name, err)
	}
	return e.writeRebuilt(out, file, origin{Domain: t.domain.Name, PID: p.PID, Process: p.Name, Path: m.Path, Base: report.Address(m.Base)})
}

func asErrors(problems []introspect.Problem) []error {
	var out []error
	for _, p := range problems {
		out = append(out, p)
	}
	return out
}

// findModule picks the program, or the module of a name or base address.
func findModule(p *introspect.Process, mods []introspect.Module, name string) (*introspect.Module, error) {
	for i := range mods {
		m := &mods[i]
		switch {
		case name == "" && m.Base == p.SectionBase,
			name != "" && strings.EqualFold(m.Name, name),
			name != "" && fmt.Sprintf("%#x", m.Base) == strings.ToLower(name):
			return m, nil
		}
	}
	if name == "" {
		return nil, errors.New("its program is not mapped")
	}
	return nil, fmt.Errorf("it has no module %q", name)
}

// fileName makes text from a guest safe as part of a file name.
func fileName(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '.' || r == '-' || r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			return r
		}
		return '_'
	}, filepath.Base(s))
}

// writeNew writes a file whole or not at all, for its owner alone: it may hold
// malicious code and a guest's secrets.
func writeNew(path string, data []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), ".vmav-*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(data)
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
