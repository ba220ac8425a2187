package main

import (
	"bufio"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"os"
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
			&cli.BoolFlag{Name: "all", Usage: "every profile that vmav finds, built-in ones too"},
			&cli.PathFlag{Name: "key", Usage: "private key `FILE` to sign with", Value: defaultKey, EnvVars: []string{"VMAV_BUNDLE_KEY"}}},
		Action: func(c *cli.Context) error { return runProfileExport(c, e) }})
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
	var profiles []bundle.Profile
	taken := make(map[winstruct.Identity]bool)
	for _, entry := range store.List() {
		if !c.Bool("all") && !wanted(entry, c.Args().Slice()) {
			continue
		}
		if entry.Err != nil {
			return entry.Err
		}
		if taken[entry.Identity] {
			continue // a lower layer's
		}
		taken[entry.Identity] = true
		packed, err := store.Packed(entry)
		if err != nil {
			return err
		}
		profiles = append(profiles, bundle.Profile{Entry: entry, Packed: packed})
	}
	if len(profiles) == 0 {
		return errors.New("no profile of that id or version; vmav profile list lists them")
	}
	path := c.Path("output")
	if err := writeBundle(path, profiles, key); err != nil {
		return fmt.Errorf("write bundle %s: %w", path, err)
	}
	fmt.Fprintf(e.stdout, "%s: %d profiles\n", escape.Text(path), len(profiles))
	return nil
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
func writeBundle(path string, profiles []bundle.Profile, key ed25519.PrivateKey) error {
	return atomicfile.Write(path, 0o644, func(f io.Writer) error {
		w := bufio.NewWriter(f)
		return errors.Join(bundle.Write(w, profiles, key, time.Now()), w.Flush())
	})
}

func startsAsBundle(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	head := make([]byte, 64)
	n, _ := f.Read(head)
	return bundle.Is(head[:n]), nil
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
	builds, err := bundle.Import(bufio.NewReader(f), dir, trusted, introspect.Usable)
	if err != nil {
		return fmt.Errorf("import %s: %w", file, err)
	}
	fmt.Fprintf(e.stdout, "%s: signature verified, %d profiles stored in %s\n", escape.Text(file), len(builds), escape.Text(dir))
	return nil
}
