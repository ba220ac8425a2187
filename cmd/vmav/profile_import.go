package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"vmav.dev/vmav/internal/atomicfile"
	"vmav.dev/vmav/internal/escape"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/winstruct"
	"vmav.dev/vmav/internal/winstruct/bundle"
)

func systemFlag() cli.Flag {
	return &cli.BoolFlag{Name: "system", Usage: "for all users, in " + winstruct.SystemDir}
}

// storeDir returns the directory in which a command stores profiles.
func storeDir(c *cli.Context) (string, error) {
	if c.Bool("system") {
		return winstruct.SystemDir, nil
	}
	return winstruct.UserDir()
}

func pdbNameFlag() cli.Flag {
	return &cli.StringFlag{Name: "name", Usage: "the PDB's own `NAME`, such as ntkrnlmp.pdb, if its file has another name"}
}

func profileImportCommand(e *env) *cli.Command {
	return command(&cli.Command{Name: "import", Usage: "store the profiles of symbol files", ArgsUsage: "FILE…",
		Description: "FILE is a PDB, a Volatility 3 symbol file (.json, .json.xz), a profile that vmav wrote, or a bundle:\n" +
			"a file that vmav profile export or vmav profile pack signed. A profile that lacks something vmav\n" +
			"needs is refused, with what is missing.\n" +
			"A bundle must be signed by a key in " + bundle.TrustedDir + " (*.pub), or by that of --trust.",
		Flags: []cli.Flag{systemFlag(), &cli.PathFlag{Name: "trust", Usage: "public key `FILE` that a bundle may be signed by"},
			pdbNameFlag()},
		Action: func(c *cli.Context) error { return runProfileImport(c, e) }})
}

func runProfileImport(c *cli.Context, e *env) error {
	if c.NArg() == 0 {
		return errors.New("import needs a symbol file")
	}
	dir, err := storeDir(c)
	if err != nil {
		return err
	}
	for _, file := range c.Args().Slice() {
		isBundle, err := startsAsBundle(file)
		if err != nil {
			return err
		}
		if isBundle {
			err = importBundle(c, e, dir, file)
		} else {
			err = importFile(e, dir, file, c.String("name"))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func importFile(e *env, dir, file, name string) error {
	if isPack, err := startsAsPack(file); err == nil && isPack {
		return fmt.Errorf("import %s: it is a pack without its signature; vmav profile export --all -o FILE signs the packs of a host that has them", file)
	}
	p, err := winstruct.Open(file)
	if err != nil {
		return err
	}
	if name != "" {
		p.PDB = strings.ToLower(name)
	}
	if err := p.Identity.Check(); err != nil {
		return fmt.Errorf("import %s: %w", file, err)
	}
	if err := introspect.Usable(p); err != nil {
		return fmt.Errorf("import %s: %w", file, err)
	}
	path, err := winstruct.Put(dir, p)
	if err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "%s: %s, stored as %s\n", escape.Text(file), p.Identity, path)
	return nil
}

func profileBuildCommand(e *env) *cli.Command {
	return command(&cli.Command{Name: "build", Usage: "make a profile of a PDB", ArgsUsage: "FILE.pdb",
		Description: "The profile holds every structure, enumeration and symbol of the PDB. It is text; vmav profile\n" +
			"show prints it, and vmav profile import stores it. If its name ends in .zst, it is compressed.",
		Flags: []cli.Flag{&cli.PathFlag{Name: "output", Aliases: []string{"o"}, Usage: "the profile's `FILE`; - for standard output", Required: true},
			pdbNameFlag(),
			&cli.StringFlag{Name: "windows", Usage: "the file `VERSION` of the program: 10.0.19041.1237"}},
		Action: func(c *cli.Context) error { return runProfileBuild(c, e) }})
}

func runProfileBuild(c *cli.Context, e *env) error {
	if c.NArg() != 1 {
		return errors.New("build needs one PDB")
	}
	p, err := winstruct.ImportPDBFile(c.Args().First())
	if err != nil {
		return err
	}
	if name := c.String("name"); name != "" {
		p.PDB = strings.ToLower(name)
	}
	if err := p.Identity.Check(); err != nil {
		return err
	}
	p.Version = c.String("windows")
	out := c.Path("output")
	if out == "-" {
		return p.SaveText(e.stdout)
	}
	if err := writeProfile(out, p); err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "%s: %s, %d structures, %d symbols\n", escape.Text(out), p.Identity, len(p.Structs()), len(p.Symbols()))
	return nil
}

// writeProfile writes a profile to a file, completely or not at all.
func writeProfile(path string, p *winstruct.Profile) error {
	save := p.SaveText
	if strings.HasSuffix(path, ".zst") {
		save = p.Save
	}
	if err := atomicfile.Write(path, 0o644, save); err != nil {
		return fmt.Errorf("write profile %s: %w", p.Identity, err)
	}
	return nil
}

func profileVerifyCommand(e *env) *cli.Command {
	return command(&cli.Command{Name: "verify", Usage: "check that profiles are complete and hold everything that vmav needs", ArgsUsage: "[FILE|ID…]",
		Description: "Without an operand all profiles and packs that vmav finds are checked.",
		Action:      func(c *cli.Context) error { return runProfileVerify(c, e) }})
}

func runProfileVerify(c *cli.Context, e *env) error {
	bad := false
	verify := func(what string, p *winstruct.Profile, err error) {
		if err == nil {
			err = introspect.Usable(p)
		}
		if err != nil {
			bad = true
			fmt.Fprintf(e.stdout, "%s: %s\n", escape.Text(what), escape.Text(err.Error()))
			return
		}
		fmt.Fprintf(e.stdout, "%s: ok, %s\n", escape.Text(what), p.Identity)
	}
	verifyPack := func(path string) {
		k, err := winstruct.OpenKernelPackFile(path)
		if err == nil {
			err = k.Check(introspect.Usable)
		}
		if err != nil {
			bad = true
			fmt.Fprintf(e.stdout, "pack %s: %s\n", escape.Text(path), escape.Text(err.Error()))
			return
		}
		fmt.Fprintf(e.stdout, "pack %s: ok, %d kernels\n", escape.Text(path), k.Len())
	}
	if c.NArg() == 0 {
		store := winstruct.OpenStore()
		for _, entry := range store.List() {
			if entry.Layer == winstruct.PackLayer {
				continue // with its pack
			}
			p, err := store.Open(entry)
			verify(entry.Layer+" "+entry.Name, p, err)
		}
		for _, path := range store.Packs() {
			verifyPack(path)
		}
	}
	for _, arg := range c.Args().Slice() {
		if isPack, err := startsAsPack(arg); err == nil && isPack {
			verifyPack(arg)
			continue
		}
		p, _, err := findProfile(arg)
		verify(arg, p, err)
	}
	if bad {
		return errIncomplete
	}
	return nil
}
