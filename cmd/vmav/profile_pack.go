package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"vmav.dev/vmav/internal/escape"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/winstruct"
	"vmav.dev/vmav/internal/winstruct/bundle"
)

// maxBuilds bounds the list of builds to fetch.
const maxBuilds = 1 << 16

func profilePackCommand(e *env) *cli.Command {
	return command(&cli.Command{Name: "pack", Usage: "make a signed pack of many kernels, for hosts without a network", ArgsUsage: "[FILE|DIR…]",
		Description: "FILE is a PDB, a Volatility 3 symbol file or a profile. From DIR and the directories below it the\n" +
			"files of all kernels are taken. The pack has everything that vmav needs to know about a kernel, and\n" +
			"has equal layouts once: 2,000 kernels fit into less than 1 MB. Guests are read with it as with their\n" +
			"kernels' own profiles, exactly. vmav profile import stores the pack, on hosts that have the public\n" +
			"key. vmav profile export --help says how to make the keys.\n\n" +
			"LIST has one build in each line: NAME.pdb ID [VERSION]. The version is stored with the kernel, also\n" +
			"if a FILE or DIR has it. Empty lines, and the rest of a line from a # on, are ignored.\n\n" +
			"EXIT STATUS\n" +
			"   0    the pack has all kernels\n" +
			"   2    an error, or the pack lacks some kernels, each of which was reported\n" +
			"   130  interrupted; nothing was written",
		Flags: []cli.Flag{&cli.PathFlag{Name: "output", Aliases: []string{"o"}, Usage: "write the signed pack to `FILE`", Required: true},
			&cli.BoolFlag{Name: "all", Usage: "add all profiles that vmav finds, also built-in ones and those in packs"},
			&cli.PathFlag{Name: "builds", Usage: "file with a `LIST` of builds; those that no FILE or DIR has are fetched"},
			&cli.StringFlag{Name: "pack-name", Usage: "`NAME` of the pack where it is imported; it replaces a pack of that name", Value: "kernels"},
			&cli.StringFlag{Name: "name", Usage: "the PDBs' own `NAME`, if their files have other names: ntkrnlmp.pdb"},
			symbolPathFlag(), keyFlag()},
		Action: func(c *cli.Context) error { return runProfilePack(c, e) }})
}

// versionForm is the form of a file's version.
var versionForm = regexp.MustCompile(`^[0-9]{1,5}(\.[0-9]{1,5}){1,3}$`)

// packing is a run of vmav profile pack.
type packing struct {
	e        *env
	b        *winstruct.PackBuilder
	pdbName  string
	versions map[string]string // of builds in the list, by key
	has      map[string]bool   // keys of kernels in the pack
	failed   int               // kernels that are not in it
	others   int               // files that are no kernel's
}

func runProfilePack(c *cli.Context, e *env) error {
	if !c.Bool("all") && c.NArg() == 0 && c.Path("builds") == "" {
		return errors.New("pack needs symbol files or directories of them, --all or --builds")
	}
	name := winstruct.PackName(c.String("pack-name"))
	if err := winstruct.CheckPackName(name); err != nil {
		return err
	}
	key, err := bundle.ReadPrivateKey(c.Path("key"))
	if err != nil {
		return err
	}
	p := &packing{e: e, b: winstruct.NewPackBuilder(introspect.Needed()), pdbName: strings.ToLower(c.String("name")),
		versions: make(map[string]string), has: make(map[string]bool)}
	var builds []winstruct.Identity
	if path := c.Path("builds"); path != "" {
		if builds, err = p.readBuilds(path); err != nil {
			return err
		}
	}
	for _, operand := range c.Args().Slice() {
		if err := p.operand(c, operand); err != nil {
			return err
		}
	}
	if c.Bool("all") {
		p.store()
	}
	if err := p.fetch(c, builds); err != nil {
		return err
	}
	if err := c.Context.Err(); err != nil {
		return err
	}
	if p.others > 0 {
		e.warn("%d symbol files ignored: they are not of kernels", p.others)
	}
	if p.b.Len() == 0 {
		return errors.New("no kernel to pack")
	}
	data, err := p.b.Bytes()
	if err != nil {
		return err
	}
	packed, err := winstruct.OpenKernelPack(data)
	if err == nil {
		err = packed.Check(introspect.Usable)
	}
	if err != nil {
		return fmt.Errorf("the pack that was made is not whole: %w", err)
	}
	path := c.Path("output")
	if err := writeBundle(path, bundle.Content{Packs: []bundle.Pack{{Name: name, Data: data}}}, key); err != nil {
		return fmt.Errorf("write pack %s: %w", path, err)
	}
	fmt.Fprintf(e.stdout, "%s: %s; %s has %d bytes\n", escape.Text(path), packed.Summary(), name, len(data))
	if p.failed > 0 {
		return errIncomplete
	}
	return nil
}

// add adds a kernel. One that cannot be added is named; the others go on.
func (p *packing) add(from string, profile *winstruct.Profile) {
	if v := p.versions[profile.Key()]; profile.Version == "" && v != "" {
		copied := *profile
		copied.Version = v
		profile = &copied
	}
	err := profile.Identity.Check()
	if err == nil {
		err = introspect.Usable(profile)
	}
	if err == nil {
		err = p.b.Add(profile)
	}
	if err != nil {
		p.fail(from, err)
		return
	}
	p.has[profile.Key()] = true
}

func (p *packing) fail(from string, err error) {
	p.failed++
	p.e.warn("%s: not packed: %v", from, err)
}

// operand adds the kernel of a file, or those of a directory.
func (p *packing) operand(c *cli.Context, path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !st.IsDir() {
		p.file(path, true)
		return nil
	}
	return filepath.WalkDir(path, func(path string, d fs.DirEntry, err error) error {
		switch {
		case c.Context.Err() != nil:
			return c.Context.Err()
		case err != nil:
			p.fail(path, err)
		case d.Type().IsRegular() && isSymbolFile(d.Name()):
			p.file(path, false)
		}
		return nil
	})
}

// isSymbolFile goes by the name, so that what else lies in a directory is no error.
func isSymbolFile(name string) bool {
	name = strings.ToLower(name)
	for _, suffix := range []string{".pdb", ".pd_", ".json", ".json.xz", ".json.zst"} {
		if strings.HasSuffix(name, suffix) {
			return true
		}
	}
	return false
}

// file adds the kernel of a symbol file. One that nobody named is left out if it is of
// another program.
func (p *packing) file(path string, named bool) {
	name := strings.ToLower(filepath.Base(path))
	ext := filepath.Ext(name)
	isPDB := ext == ".pdb" || ext == ".pd_"
	if isPDB && !named && p.pdbName == "" && !introspect.IsKernel(strings.TrimSuffix(name, ext)+".pdb") {
		p.others++
		return
	}
	profile, err := winstruct.Open(path)
	if err != nil {
		p.fail(path, err)
		return
	}
	if isPDB && p.pdbName != "" {
		profile.PDB = p.pdbName
	}
	if !named && !introspect.IsKernel(profile.PDB) {
		p.others++
		return
	}
	p.add(path, profile)
}

// store adds what is stored here. A build is taken from the first layer that has it.
func (p *packing) store() {
	store := winstruct.OpenStore()
	taken := make(map[winstruct.Identity]bool)
	for _, entry := range store.List() {
		if entry.Err != nil {
			p.fail(entry.Layer, entry.Err)
			continue
		}
		if taken[entry.Identity] || p.has[entry.Identity.Key()] {
			continue
		}
		taken[entry.Identity] = true
		profile, err := store.Find(entry.Identity)
		if err != nil {
			p.fail(entry.Layer+" "+entry.Name, err)
			continue
		}
		p.add(entry.Layer+" "+entry.Name, profile)
	}
}

// fetch adds the builds that nothing else had.
func (p *packing) fetch(c *cli.Context, builds []winstruct.Identity) error {
	builds = slices.DeleteFunc(builds, func(id winstruct.Identity) bool { return p.has[id.Key()] })
	if len(builds) == 0 {
		return nil
	}
	from, err := newFetcher(c, p.e)
	if err != nil {
		return err
	}
	for _, id := range builds {
		profile, err := fetchProfile(c.Context, from, id)
		if c.Context.Err() != nil {
			return c.Context.Err()
		}
		if err != nil {
			p.fail(id.String(), err)
			continue
		}
		p.add(id.String(), profile)
	}
	return nil
}

// readBuilds reads a list of builds.
func (p *packing) readBuilds(path string) (out []winstruct.Identity, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		text, _, _ := strings.Cut(lines.Text(), "#")
		words := strings.Fields(text)
		if len(words) == 0 {
			continue
		}
		if len(words) < 2 || len(words) > 3 {
			return nil, fmt.Errorf("%s:%d: %d words, where NAME.pdb ID [VERSION] belongs", path, n, len(words))
		}
		id, err := winstruct.ParseIdentity(words[0], words[1])
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", path, n, err)
		}
		if len(words) == 3 && !versionForm.MatchString(words[2]) {
			return nil, fmt.Errorf("%s:%d: version %q is not of the form 10.0.26100.1742", path, n, words[2])
		}
		if len(out) == maxBuilds {
			return nil, fmt.Errorf("%s: more than %d builds", path, maxBuilds)
		}
		if out = append(out, id); len(words) == 3 {
			p.versions[id.Key()] = words[2]
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return out, nil
}
