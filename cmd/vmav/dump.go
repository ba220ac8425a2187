package main

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"vmav.dev/vmav/internal/atomicfile"
	"vmav.dev/vmav/internal/escape"
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/pe"
	"vmav.dev/vmav/internal/scan"
)

func dumpCommand(e *env) *cli.Command {
	return command(&cli.Command{
		Name:      "dump",
		Usage:     "write rebuilt files, with a record of how close each is to the file that was loaded",
		ArgsUsage: "DOMAIN PID",
		Description: "The program of the process, or the module that --module names, is written to FILE, and its\n" +
			"fidelity record to FILE.json. With --all every module is written to the directory FILE, and\n" +
			"manifest.json in it lists them. The files may be malicious, so they are not executable. A file\n" +
			"with parts missing is written as well; the exit status is then 2.",
		Flags: append([]cli.Flag{connectFlag(), sourceFlag(), imageFlag(),
			&cli.PathFlag{Name: "output", Aliases: []string{"o"}, Usage: "`FILE`; without it DOMAIN-PID-NAME in this directory"},
			&cli.StringFlag{Name: "module", Usage: "base `NAME` of the module, or its base address as 0x…"},
			&cli.BoolFlag{Name: "all", Usage: "every module of the process, into a directory"},
			&cli.BoolFlag{Name: "raw", Usage: "write the mapped form, without rebuilding the file"}}, append(pageInFlags(), profileFlags()...)...),
		Action:       func(c *cli.Context) error { return runDump(c, e) },
		BashComplete: completeDomains(e),
	})
}

func runDump(c *cli.Context, e *env) error {
	t, rest, done, err := openTarget(c, e)
	if err != nil {
		return err
	}
	defer done()
	if len(rest) != 1 {
		return errors.New("dump needs the pid of a process; vmav dump --help shows the usage")
	}
	if c.Bool("all") && c.String("module") != "" {
		return errors.New("--all and --module exclude each other")
	}
	pageIn, err := parsePageIn(c)
	if err != nil {
		return err
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
	mappings, err := scan.Survey(c.Context, g, procs)
	if err != nil {
		return err
	}
	d := dumper{env: e, target: t.describe(), domain: t.domain.Name, process: p, raw: c.Bool("raw"), copier: scan.NewCopier(g, mappings, scan.NewFiles())}
	if pageIn != nil {
		pager, err := scan.OpenPager(g, t.source, *pageIn)
		if err != nil {
			return fmt.Errorf("%s: %w", t.describe(), err)
		}
		defer pager.Close()
		d.copier.PageIn(pager)
	}
	if c.Bool("all") {
		return d.all(c.Context, c.Path("output"), mods, problems)
	}
	m, err := findModule(p, mods, c.String("module"))
	if err != nil {
		return fmt.Errorf("%s: process %d (%s): %w", t.describe(), p.PID, p.Name, errors.Join(append([]error{err}, asErrors(problems)...)...))
	}
	out := c.Path("output")
	if out == "" {
		out = fmt.Sprintf("%s-%d-%s", fileName(t.domain.Name), p.PID, fileName(m.Name))
	}
	_, err = d.module(c.Context, m, out)
	return err
}

// dumper writes modules of one process to files.
type dumper struct {
	*env
	target, domain string
	process        *introspect.Process
	raw            bool
	copier         *scan.Copier
	rebuilder      pe.Rebuilder
}

// dumped is the entry of a module in a manifest.
type dumped struct {
	Name     string          `json:"name"`
	Path     string          `json:"path"`
	Base     finding.Address `json:"base"`
	Size     uint64          `json:"size"` // bytes mapped
	File     string          `json:"file,omitempty"`
	SHA256   string          `json:"sha256,omitempty"`
	Coverage float64         `json:"coverage"`
	Exact    bool            `json:"exact"`
	Error    string          `json:"error,omitempty"`
}

// module writes one module to out. The error is errIncomplete if parts are missing.
func (d *dumper) module(ctx context.Context, m *introspect.Module, out string) (dumped, error) {
	entry := dumped{Name: m.Name, Path: m.Path, Base: finding.Address(m.Base), Size: m.Size}
	what := fmt.Sprintf("%s: process %d (%s), image %s", d.target, d.process.PID, d.process.Name, m.Name)
	img, opt, err := d.copier.Read(ctx, d.process, m)
	if err != nil {
		return entry, fmt.Errorf("%s: %w", what, err)
	}
	entry.File = filepath.Base(out)
	if d.raw {
		if err := writeNew(out, img.Mem); err != nil {
			return entry, err
		}
		absent := 0
		for _, o := range img.Pages {
			if o == pe.Absent {
				absent++
			}
		}
		entry.SHA256 = fmt.Sprintf("%x", sha256.Sum256(img.Mem))
		entry.Coverage = 1 - float64(absent)/float64(len(img.Pages))
		fmt.Fprintf(d.stdout, "%s: %d bytes as mapped at %#x\n", out, len(img.Mem), img.Base)
		if absent > 0 {
			fmt.Fprintf(d.stdout, "  %d of %d pages are not in memory; zeros stand in for them.\n", absent, len(img.Pages))
			return entry, errIncomplete
		}
		return entry, nil
	}
	file, err := d.rebuilder.Rebuild(img, opt)
	if err != nil {
		return entry, fmt.Errorf("%s: rebuild: %w", what, err)
	}
	entry.SHA256 = fmt.Sprintf("%x", sha256.Sum256(file.Data))
	entry.Coverage, entry.Exact = file.Fidelity.Coverage(), file.Fidelity.Exact()
	return entry, d.writeRebuilt(out, file, origin{Domain: d.domain, PID: d.process.PID, Process: d.process.Name, Path: m.Path,
		Base: finding.Address(m.Base), Cached: scan.CachedHash(opt)})
}

// all writes every module, and a manifest of them, to the directory dir.
func (d *dumper) all(ctx context.Context, dir string, mods []introspect.Module, problems []introspect.Problem) error {
	if dir == "" {
		dir = fmt.Sprintf("%s-%d", fileName(d.domain), d.process.PID)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	manifest := struct {
		Domain  string   `json:"domain"`
		PID     uint64   `json:"pid"`
		Process string   `json:"process"`
		Modules []dumped `json:"modules"`
		Errors  []string `json:"errors"`
	}{d.domain, d.process.PID, d.process.Name, []dumped{}, []string{}}
	for _, p := range problems {
		manifest.Errors = append(manifest.Errors, p.Error())
	}
	var result error
	taken := map[string]bool{"manifest.json": true}
	for i := range mods {
		m := &mods[i]
		if slices.Contains(m.Flags, introspect.FlagUnmapped) {
			continue
		}
		name := fileName(m.Name)
		// A name can occur twice, also with other upper and lower case.
		if key := strings.ToLower(name); m.Name == "" || taken[key] || taken[key+".json"] {
			name = fmt.Sprintf("%x-%s", m.Base, name)
		}
		taken[strings.ToLower(name)], taken[strings.ToLower(name)+".json"] = true, true
		entry, err := d.module(ctx, m, filepath.Join(dir, name))
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if result = errIncomplete; !errors.Is(err, errIncomplete) {
				entry.File, entry.Error = "", err.Error()
				fmt.Fprintf(d.stderr, "vmav: %s\n", escape.Text(err.Error()))
			}
		}
		manifest.Modules = append(manifest.Modules, entry)
	}
	text, err := json.MarshalIndent(manifest, "", "  ")
	if err != nil {
		return err
	}
	path := filepath.Join(dir, "manifest.json")
	if err := writeNew(path, append(text, '\n')); err != nil {
		return err
	}
	fmt.Fprintf(d.stdout, "%s: %d modules of process %d (%s)\n", path, len(manifest.Modules), d.process.PID, escape.Text(d.process.Name))
	if len(problems) > 0 {
		return errIncomplete
	}
	return result
}

func asErrors(problems []introspect.Problem) []error {
	var out []error
	for _, p := range problems {
		out = append(out, p)
	}
	return out
}

// findModule returns the module with a name or base address, or the program if name is "".
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

// maxFileName bounds what fileName returns, in bytes. A file name has at most 255 bytes,
// and a base address, ".json" and a suffix for temporary files are added.
const maxFileName = 200

// fileName makes text from a guest safe as part of a file name.
func fileName(s string) string {
	safe := strings.Map(func(r rune) rune {
		if r == '.' || r == '-' || r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			return r
		}
		return '_'
	}, filepath.Base(s))
	return safe[:min(len(safe), maxFileName)]
}

// writeNew writes a file completely or not at all, readable only by its owner. It may hold
// malicious code and a guest's secrets.
func writeNew(path string, data []byte) error { return atomicfile.WriteBytes(path, 0o600, data) }
