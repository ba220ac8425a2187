package main

import (
	"bufio"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"vmav.dev/vmav/internal/atomicfile"
	"vmav.dev/vmav/internal/escape"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/winstruct"
	"vmav.dev/vmav/internal/winstruct/bundle"
)

// defaultKey is the file of the operator's private key on the host that makes bundles.
const defaultKey = "/etc/vmav/bundle.key"

func profileExportCommand(e *env) *cli.Command {
	return command(&cli.Command{Name: "export", Usage: "write profiles into one signed bundle, for hosts without a network", ArgsUsage: "ID… | --all",
		Description: "ID is as vmav profile list prints it, or a version. vmav profile import stores the profiles of the\n" +
			"bundle on hosts that have the public key. Keys are Ed25519 keys in PEM:\n\n" +
			"   openssl genpkey -algorithm ed25519 -out bundle.key\n" +
			"   openssl pkey -in bundle.key -pubout -out bundle.pub",
		Flags: []cli.Flag{&cli.PathFlag{Name: "output", Aliases: []string{"o"}, Usage: "the bundle's `FILE`", Required: true},
			&cli.BoolFlag{Name: "all", Usage: "every profile and pack that vmav finds, built-in ones too"},
			keyFlag()},
		Action: func(c *cli.Context) error { return runProfileExport(c, e) }})
}

func keyFlag() cli.Flag {
	return &cli.PathFlag{Name: "key", Usage: "private key `FILE` to sign with", Value: defaultKey, EnvVars: []string{"VMAV_BUNDLE_KEY"}}
}

func runProfileExport(c *cli.Context, e *env) error {
	if c.Bool("all") == (c.NArg() > 0) {
		return errors.New("export needs ids of profiles, or --all")
	}
	key, err := bundle.ReadPrivateKey(c.Path("key"))
	if err != nil {
		return err
	}
	store := winstruct.OpenStore()
	var content bundle.Content
	taken := make(map[winstruct.Identity]bool)
	for _, entry := range store.List() {
		if !c.Bool("all") && !wanted(entry, c.Args().Slice()) {
			continue
		}
		if entry.Err != nil {
			return entry.Err
		}
		if c.Bool("all") && entry.Layer == winstruct.PackLayer {
			continue // it goes with its pack
		}
		if taken[entry.Identity] {
			continue // a lower layer's
		}
		taken[entry.Identity] = true
		packed, err := store.Packed(entry)
		if err != nil {
			return err
		}
		content.Profiles = append(content.Profiles, bundle.Profile{Entry: entry, Packed: packed})
	}
	if c.Bool("all") {
		if content.Packs, err = packsOf(store); err != nil {
			return err
		}
	}
	if len(content.Profiles) == 0 && len(content.Packs) == 0 {
		return errors.New("no profile of that id or version; vmav profile list lists them")
	}
	path := c.Path("output")
	if err := writeBundle(path, content, key); err != nil {
		return fmt.Errorf("write bundle %s: %w", path, err)
	}
	packs := ""
	if n := len(content.Packs); n > 0 {
		packs = fmt.Sprintf(" and %d packs", n)
	}
	fmt.Fprintf(e.stdout, "%s: %d profiles%s\n", escape.Text(path), len(content.Profiles), packs)
	return nil
}

// packsOf reads the packs that are stored here. Of two with one name the user's is taken.
func packsOf(store *winstruct.Store) (out []bundle.Pack, err error) {
	taken := make(map[string]bool)
	for _, path := range store.Packs() {
		name := filepath.Base(path)
		if taken[name] {
			continue
		}
		taken[name] = true
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		out = append(out, bundle.Pack{Name: name, Data: data})
	}
	return out, nil
}

func wanted(entry winstruct.Entry, args []string) bool {
	for _, arg := range args {
		if strings.EqualFold(entry.Identity.Key(), arg) || entry.Version == arg || strings.HasPrefix(entry.Version, arg+".") {
			return true
		}
	}
	return false
}

// writeBundle writes a bundle to a file, completely or not at all.
func writeBundle(path string, content bundle.Content, key ed25519.PrivateKey) error {
	return atomicfile.Write(path, 0o644, func(f io.Writer) error {
		w := bufio.NewWriter(f)
		return errors.Join(bundle.Write(w, content, key, time.Now()), w.Flush())
	})
}

func startsAsBundle(path string) (bool, error) {
	head, err := startOf(path)
	return bundle.Is(head), err
}

// startOf reads what tells the form of a file.
func startOf(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	head := make([]byte, 64)
	n, _ := io.ReadFull(f, head)
	return head[:n], nil
}

func importBundle(c *cli.Context, e *env, dir, file string) error {
	trusted, err := bundle.TrustedKeys(bundle.TrustedDir)
	if err != nil {
		return err
	}
	if path := c.Path("trust"); path != "" {
		key, err := bundle.ReadPublicKey(path)
		if err != nil {
			return err
		}
		trusted = append(trusted, key)
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	got, err := bundle.Import(bufio.NewReader(f), dir, trusted, introspect.Usable)
	if err != nil {
		return fmt.Errorf("import %s: %w", file, err)
	}
	what := fmt.Sprintf("%d profiles", len(got.Profiles))
	if len(got.Packs) > 0 {
		what = fmt.Sprintf("%s with %d kernels", strings.Join(got.Packs, ", "), got.Kernels)
		if len(got.Profiles) > 0 {
			what = fmt.Sprintf("%d profiles and %s", len(got.Profiles), what)
		}
	}
	fmt.Fprintf(e.stdout, "%s: signature verified, %s stored in %s\n", escape.Text(file), what, escape.Text(dir))
	return nil
}
