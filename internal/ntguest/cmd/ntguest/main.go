// Command ntguest makes the NT test guest: memory laid out as a Windows build lays
// it out, as an image file, as a kernel that QEMU boots, or as a libvirt domain.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"vmav.dev/vmav/internal/ntguest"
)

func main() {
	layout := []cli.Flag{
		&cli.StringFlag{Name: "build", Value: "10.0.19041", Usage: "Windows `BUILD`; ntguest builds lists them"},
		&cli.Uint64Flag{Name: "seed", Value: 1, Usage: "`N` that everything random follows from"},
		&cli.Uint64Flag{Name: "memory", Value: 512, Usage: "RAM in `MiB`"},
		&cli.BoolFlag{Name: "kva-shadow", Usage: "give processes user page tables without the kernel"},
		&cli.BoolFlag{Name: "la57", Usage: "5-level paging"},
		&cli.BoolFlag{Name: "absent", Usage: "leave pages of images out of processes, and some out of memory"},
		&cli.StringFlag{Name: "hide", Usage: "unlink the process of this `NAME` from the process list"},
		&cli.BoolFlag{Name: "3gb", Usage: "32-bit builds: processes have 3 GiB of addresses"},
		&cli.PathFlag{Name: "truth", Usage: "`FILE` for the truth about the guest at its start, as JSON"},
		&cli.PathFlag{Name: "profile", Usage: "`FILE` for the profile of the guest's kernel, which vmav has only for the 64-bit builds"},
	}
	app := &cli.App{
		Name:            "ntguest",
		Usage:           "the NT test guest of vmav",
		HideHelpCommand: true,
		Commands: []*cli.Command{
			{Name: "builds", Usage: "list the Windows builds that the guest can be", Action: listBuilds},
			{Name: "image", Usage: "write the guest's memory as a raw image file", Action: writeImage, Flags: append([]cli.Flag{
				&cli.PathFlag{Name: "out", Required: true, Usage: "image `FILE`"},
			}, layout...)},
			{Name: "kernel", Usage: "write the guest as a kernel that QEMU boots", Action: writeKernel, Flags: append([]cli.Flag{
				&cli.PathFlag{Name: "out", Required: true, Usage: "ELF `FILE`"},
			}, layout...)},
			{Name: "domain", Usage: "write the kernel and print the XML of a libvirt domain that boots it", Action: writeDomain, Flags: append([]cli.Flag{
				&cli.PathFlag{Name: "kernel", Required: true, Usage: "ELF `FILE` to write, where libvirt's QEMU can read it"},
				&cli.StringFlag{Name: "name", Usage: "`NAME` of the domain; default ntguest-BUILD-SEED"},
				&cli.StringFlag{Name: "type", Value: "qemu", Usage: "qemu or kvm"},
				&cli.StringFlag{Name: "machine", Value: "q35", Usage: "q35 or pc"},
				&cli.PathFlag{Name: "console-log", Usage: "`FILE` for what the guest says"},
				&cli.PathFlag{Name: "console-socket", Usage: "UNIX `SOCKET` for the guest's console"},
			}, layout...)},
		},
	}
	if err := app.Run(os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "ntguest:", err)
		os.Exit(1)
	}
}

func options(c *cli.Context) ntguest.Options {
	return ntguest.Options{Build: c.String("build"), Seed: c.Uint64("seed"), MemoryMiB: c.Uint64("memory"),
		KVAShadow: c.Bool("kva-shadow"), LA57: c.Bool("la57"), Absent: c.Bool("absent"), Hide: c.String("hide"), ThreeGB: c.Bool("3gb")}
}

func listBuilds(*cli.Context) error {
	builds, err := ntguest.Builds()
	if err != nil {
		return err
	}
	narrow, err := ntguest.Builds32()
	if err != nil {
		return err
	}
	for _, b := range append(builds, narrow...) {
		fmt.Printf("%-17s %-18s %s\n", b.Name, b.Version, b.Identity)
	}
	return nil
}

func writeImage(c *cli.Context) error {
	m, err := ntguest.Lay(options(c))
	if err != nil {
		return err
	}
	if err := m.Save(c.Path("out")); err != nil {
		return err
	}
	return writeAbout(c, m)
}

// writeAbout writes the truth and the profile if asked to.
func writeAbout(c *cli.Context, m *ntguest.Machine) error {
	if path := c.Path("truth"); path != "" {
		if err := os.WriteFile(path, m.Truth.JSON(), 0o644); err != nil {
			return err
		}
	}
	if path := c.Path("profile"); path != "" {
		return writeProfile(m, path)
	}
	return nil
}

func writeProfile(m *ntguest.Machine, path string) error {
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	err = m.Profile().SaveText(out)
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	return err
}

func writeKernel(c *cli.Context) error { return layKernel(c, c.Path("out")) }

// layKernel writes the guest's kernel, readable to all, and what is told about it.
func layKernel(c *cli.Context, path string) error {
	m, err := ntguest.Lay(options(c))
	if err != nil {
		return err
	}
	if err := writeAbout(c, m); err != nil {
		return err
	}
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return err
	}
	err = m.WriteKernel(out)
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	return err
}

func writeDomain(c *cli.Context) error {
	d := ntguest.Domain{Name: c.String("name"), Type: c.String("type"), Machine: c.String("machine"), MemoryMiB: c.Uint64("memory"), LA57: c.Bool("la57")}
	if d.Name == "" {
		d.Name = fmt.Sprintf("ntguest-%s-%d", c.String("build"), c.Uint64("seed"))
	}
	// libvirt wants absolute paths: QEMU runs in another directory.
	for _, p := range []struct {
		flag string
		to   *string
	}{{"kernel", &d.Kernel}, {"console-log", &d.ConsoleLog}, {"console-socket", &d.ConsoleSocket}} {
		if c.Path(p.flag) == "" {
			continue
		}
		abs, err := filepath.Abs(c.Path(p.flag))
		if err != nil {
			return err
		}
		*p.to = abs
	}
	text, err := d.XML()
	if err != nil {
		return err
	}
	if err := layKernel(c, d.Kernel); err != nil {
		return err
	}
	_, err = os.Stdout.Write(text)
	return err
}
