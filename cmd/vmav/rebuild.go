package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"vmav.dev/vmav/internal/escape"
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/pe"
)

func rebuildCommand(e *env) *cli.Command {
	return command(&cli.Command{
		Name:      "rebuild",
		Usage:     "rebuild the file of a mapped image that another tool saved",
		ArgsUsage: "MAPPED",
		Description: "MAPPED holds an image as it was in memory, from its base on. The rebuilt file is written to FILE,\n" +
			"and its fidelity record to FILE.json. If parts are missing, the exit status is 2. DIR holds other\n" +
			"images of the same process, saved in the same way. Their exports help to restore imports without\n" +
			"names. Their bases come from the manifest.json of vmav dump --all --raw, else from the last 0x…\n" +
			"in the file name, else from their headers.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "base", Required: true, Usage: "`ADDRESS` that the image was mapped at"},
			&cli.StringFlag{Name: "missing", Usage: "what the tool could not read: `RANGES` of offsets, such as 0x3000-0x5000,0x9000-0xa000"},
			&cli.StringFlag{Name: "preferred", Usage: "base `ADDRESS` that the file prefers, if it is known"},
			&cli.PathFlag{Name: "modules", Usage: "`DIR` with the other images of the process"},
			&cli.PathFlag{Name: "output", Aliases: []string{"o"}, Required: true, Usage: "`FILE` to write"}},
		Action: func(c *cli.Context) error { return runRebuild(c, e) },
	})
}

// maxMapped bounds the file that is read, in bytes.
const maxMapped = 1 << 30

func runRebuild(c *cli.Context, e *env) error {
	if c.NArg() != 1 {
		return errors.New("rebuild needs one mapped image; vmav rebuild --help shows the usage")
	}
	path := c.Args().First()
	base, err := strconv.ParseUint(c.String("base"), 0, 64)
	if err != nil {
		return fmt.Errorf("base %q is no address", c.String("base"))
	}
	var opt pe.Options
	if s := c.String("preferred"); s != "" {
		if opt.PreferredBase, err = strconv.ParseUint(s, 0, 64); err != nil {
			return fmt.Errorf("preferred base %q is no address", s)
		}
	}
	holes, err := pe.ParseRanges(c.String("missing"))
	if err != nil {
		return fmt.Errorf("missing ranges %q: %w", c.String("missing"), err)
	}
	mapped, err := readMapped(path)
	if err != nil {
		return err
	}
	img, err := pe.ImageFromMapped(filepath.Base(path), mapped, base, holes)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if dir := c.Path("modules"); dir != "" {
		index, err := e.exportsIn(dir)
		if err != nil {
			return err
		}
		opt.ResolveExport = index.Resolve
	}
	file, err := pe.Rebuild(img, opt)
	if err != nil {
		return fmt.Errorf("rebuild %s: %w", path, err)
	}
	return e.writeRebuilt(c.Path("output"), file, origin{Path: path, Base: finding.Address(base)})
}

func readMapped(path string) ([]byte, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if st.Size() > maxMapped {
		return nil, fmt.Errorf("%s: its %d bytes are more than an image has", path, st.Size())
	}
	return os.ReadFile(path)
}

// maxModules bounds the images of a directory.
const maxModules = 4096

// baseInName matches addresses in the names that other tools give to dumps.
var baseInName = regexp.MustCompile(`0x[0-9a-fA-F]{1,16}`)

// exportsIn indexes the exports of the mapped images in a directory. It leaves out a file
// that is not an image and tells the user.
func (e *env) exportsIn(dir string) (*pe.ExportIndex, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	if len(entries) > maxModules {
		return nil, fmt.Errorf("%s: %d files are more than a process has modules", dir, len(entries))
	}
	var manifest struct{ Modules []dumped }
	bases := make(map[string]dumped)
	if text, err := os.ReadFile(filepath.Join(dir, "manifest.json")); err == nil {
		if err := json.Unmarshal(text, &manifest); err != nil {
			return nil, fmt.Errorf("%s: %w", filepath.Join(dir, "manifest.json"), err)
		}
		for _, m := range manifest.Modules {
			bases[m.File] = m
		}
	}
	index := pe.NewExportIndex()
	for _, f := range entries {
		if !f.Type().IsRegular() || strings.HasSuffix(f.Name(), ".json") {
			continue
		}
		path := filepath.Join(dir, f.Name())
		mapped, err := readMapped(path)
		if err != nil {
			return nil, err
		}
		m := bases[f.Name()]
		base := uint64(m.Base)
		if names := baseInName.FindAllString(f.Name(), -1); base == 0 && len(names) > 0 {
			base, _ = strconv.ParseUint(names[len(names)-1], 0, 64) // the pattern allows only digits that fit
		}
		if base == 0 {
			if h, err := pe.ParseHeaders(mapped); err == nil {
				base = h.ImageBase
			}
		}
		img, err := pe.ImageFromMapped(f.Name(), mapped, base, nil)
		name := m.Name
		if err == nil && name == "" {
			if name = pe.ModuleName(img); name == "" {
				name = f.Name()
			}
		}
		if err != nil {
			fmt.Fprintf(e.stderr, "vmav: %s is left out: %s\n", escape.Text(path), escape.Text(err.Error()))
			continue
		}
		index.Add(img, name)
	}
	return index, nil
}

// origin says where a rebuilt file comes from. It is part of the written record.
type origin struct {
	Domain  string          `json:"domain,omitempty"`
	PID     uint64          `json:"pid,omitempty"`
	Process string          `json:"process,omitempty"`
	Path    string          `json:"path"`
	Base    finding.Address `json:"base"`
	Cached  string          `json:"cached_sha256,omitempty"` // of the file itself, if the guest's cache holds all of it
}

// maxRecorded bounds the gaps that a written record lists one by one.
const maxRecorded = 10000

// writeRebuilt writes a rebuilt file and its record, and describes how close it is to the
// file that was loaded.
func (e *env) writeRebuilt(out string, file *pe.File, from origin) error {
	record, err := json.MarshalIndent(struct {
		origin
		Hashes   pe.Hashes    `json:"hashes"`
		Fidelity *pe.Fidelity `json:"fidelity"`
	}{from, pe.Hash(file), file.Fidelity.Compact(maxRecorded)}, "", "  ")
	if err != nil {
		return err
	}
	if err := writeNew(out, file.Data); err != nil {
		return err
	}
	if err := writeNew(out+".json", append(record, '\n')); err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "%s: %d bytes, rebuilt from %s\n", out, len(file.Data), escape.Text(from.Path))
	for _, line := range file.Fidelity.Describe() {
		fmt.Fprintln(e.stdout, "  "+escape.Text(line))
	}
	if !file.Fidelity.Complete() {
		return errIncomplete
	}
	return nil
}
