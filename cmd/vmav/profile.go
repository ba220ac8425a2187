package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/urfave/cli/v2"

	"vmav.dev/vmav/internal/escape"
	"vmav.dev/vmav/internal/report"
	"vmav.dev/vmav/internal/winstruct"
	"vmav.dev/vmav/internal/winstruct/pack"
)

func profileCommand(e *env) *cli.Command {
	return command(&cli.Command{
		Name:  "profile",
		Usage: "list, import and export the layouts of Windows builds that vmav knows",
		Description: "A profile describes the structures of one Windows kernel build. vmav looks for profiles in the\n" +
			"user's directory, in " + winstruct.SystemDir + " in itself and in the packs of both directories, in this order.",
		Subcommands: []*cli.Command{
			command(&cli.Command{Name: "list", Usage: "list the profiles of every place", Flags: []cli.Flag{formatFlag()},
				Action: func(c *cli.Context) error { return runProfileList(c, e) }}),
			command(&cli.Command{Name: "show", Usage: "print a profile's structures, or one of them", ArgsUsage: "FILE|ID [STRUCT]",
				Description: "ID is the GUID followed by the age, as vmav profile list prints it, or a version. If FILE is a pack\n" +
					"in a directory of profiles, its kernels are listed.",
				Action: func(c *cli.Context) error { return runProfileShow(c, e) }}),
			profileImportCommand(e),
			profileBuildCommand(e),
			profileFetchCommand(e),
			profileVerifyCommand(e),
			profileExportCommand(e),
			profilePackCommand(e),
		},
	})
}

// profileRow is a profile in vmav profile list.
type profileRow struct {
	Version string             `json:"version"`
	PDB     string             `json:"pdb"`
	ID      string             `json:"id"`
	Layer   string             `json:"layer"`
	Path    string             `json:"path,omitempty"`
	Sources []winstruct.Source `json:"sources,omitempty"`
	Error   string             `json:"error,omitempty"`
}

var profileColumns = []report.Column[profileRow]{
	{Title: "VERSION", Text: func(r profileRow) string { return dash(r.Version) }},
	{Title: "PDB", Text: func(r profileRow) string { return r.PDB }},
	{Title: "ID", Text: func(r profileRow) string { return r.ID }},
	{Title: "FROM", Text: func(r profileRow) string {
		switch {
		case r.Error != "":
			return r.Layer + ": " + r.Error
		case winstruct.Unverified(r.Sources):
			return r.Layer + ", " + notSeen
		}
		return r.Layer
	}},
}

// notSeen marks a profile whose facts nobody has verified.
const notSeen = "not seen on a real guest"

func runProfileList(c *cli.Context, e *env) error {
	f, err := report.ParseFormat(c.String("format"))
	if err != nil {
		return err
	}
	var rows []profileRow
	bad := false
	store := winstruct.OpenStore()
	for _, p := range append(store.List(), store.Layouts()...) {
		r := profileRow{Version: p.Version, PDB: p.Identity.PDB, Layer: p.Layer, Path: p.Path, Sources: p.Sources}
		if p.Err != nil {
			r.Error, bad = p.Err.Error(), true
		} else {
			if r.ID = p.Identity.Key(); p.Identity.GUID == winstruct.NoGUID {
				r.PDB, r.ID = "-", "("+p.Arch+")" // it belongs to no single image
			}
		}
		rows = append(rows, r)
	}
	if err := report.Rows(e.stdout, f, rows, profileColumns); err != nil {
		return err
	}
	if bad {
		return errIncomplete
	}
	return nil
}

func runProfileShow(c *cli.Context, e *env) error {
	if c.NArg() < 1 || c.NArg() > 2 {
		return errors.New("show needs a profile, and may name a structure of it")
	}
	if isPack, err := startsAsPack(c.Args().First()); err == nil && isPack {
		return showPack(c, e)
	}
	p, layer, err := findProfile(c.Args().First())
	if err != nil {
		return err
	}
	if c.NArg() == 1 {
		fmt.Fprintf(e.stdout, "%s %s %s, %d structures, %d symbols\n", dash(p.Version), p.Arch, p.Identity, len(p.Structs()), len(p.Symbols()))
		if layer != "" {
			fmt.Fprintf(e.stdout, "found: %s\n", escape.Text(layer))
		}
		if winstruct.Unverified(p.Sources) {
			fmt.Fprintln(e.stdout, notSeen)
		}
		for _, src := range p.Sources {
			fmt.Fprintf(e.stdout, "%s: %s, verified: %s\n", escape.Text(src.Of), escape.Text(src.From), src.Verified)
		}
		for _, name := range p.Structs() {
			s, _ := p.Struct(name)
			fmt.Fprintf(e.stdout, "%-40s 0x%x bytes\n", escape.Text(name), s.Size)
		}
		return nil
	}
	name := c.Args().Get(1)
	s, ok := p.Struct(name)
	if !ok {
		return fmt.Errorf("profile %s has no structure %q", p.Identity, name)
	}
	from := ""
	if src, ok := p.SourceOf(name); ok {
		from = ", from " + src.From + ", verified: " + string(src.Verified)
	}
	fmt.Fprintf(e.stdout, "%s, 0x%x bytes%s\n", escape.Text(name), s.Size, escape.Text(from))
	for _, f := range s.Fields {
		fmt.Fprintln(e.stdout, escape.Text(f.String()))
	}
	return nil
}

func startsAsPack(path string) (bool, error) {
	head, err := startOf(path)
	return pack.Is(head), err
}

// showPack lists the kernels of a pack.
func showPack(c *cli.Context, e *env) error {
	path := c.Args().First()
	if c.NArg() > 1 {
		return fmt.Errorf("%s is a pack: a structure is that of one kernel in it", path)
	}
	k, err := winstruct.OpenKernelPackFile(path)
	if err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "%s, %d facts of each\n", k.Summary(), len(k.Facts()))
	for i := range k.Len() {
		entry, err := k.Entry(i)
		if err != nil {
			return fmt.Errorf("read pack %s: %w", path, err)
		}
		fmt.Fprintf(e.stdout, "%-16s %-14s %s\n", escape.Text(dash(entry.Version)), escape.Text(entry.Identity.PDB), entry.Identity.Key())
	}
	return nil
}

// findProfile returns the profile of a file, an id or a version. It also returns the layer
// that the profile is from, unless it is a file's.
func findProfile(arg string) (p *winstruct.Profile, layer string, err error) {
	if _, err := os.Stat(arg); err == nil {
		p, err = winstruct.Open(arg)
		return p, "", err
	}
	store := winstruct.OpenStore()
	for _, entry := range append(store.List(), store.Layouts()...) {
		if entry.Err == nil && wanted(entry, []string{arg}) {
			if layer = entry.Layer; layer == winstruct.PackLayer {
				layer += ", " + entry.Path + ", with only what vmav reads"
			}
			p, err = store.Open(entry)
			return p, layer, err
		}
	}
	return nil, "", fmt.Errorf("no profile %q: it is no file, and vmav profile list has no such id or version", arg)
}
