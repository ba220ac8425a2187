package main

import (
	"errors"
	"fmt"
	"strconv"

	"github.com/urfave/cli/v2"

	"vmav.dev/vmav/internal/escape"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/winstruct"
)

func structCommand(e *env) *cli.Command {
	return command(&cli.Command{
		Name:        "struct",
		Usage:       "print a kernel structure in a guest's memory, member by member",
		ArgsUsage:   "DOMAIN STRUCT ADDRESS",
		Description: "STRUCT is a name that vmav profile show lists, such as _EPROCESS. ADDRESS is a virtual address.",
		Flags: append([]cli.Flag{connectFlag(), sourceFlag(), imageFlag(),
			&cli.StringFlag{Name: "pid", Usage: "read in the address space of the process `PID` and not in the kernel's"}}, profileFlags()...),
		Action:       func(c *cli.Context) error { return runStruct(c, e) },
		BashComplete: completeDomains(e),
	})
}

func runStruct(c *cli.Context, e *env) error {
	t, rest, done, err := openTarget(c, e)
	if err != nil {
		return err
	}
	defer done()
	if len(rest) != 2 {
		return errors.New("struct needs the name of a structure and an address; vmav struct --help shows the usage")
	}
	name := rest[0]
	at, err := strconv.ParseUint(rest[1], 0, 64)
	if err != nil {
		return fmt.Errorf("address %q is no number", rest[1])
	}
	g, err := t.guest(c, e)
	if err != nil {
		return err
	}
	p, err := winstruct.OpenStore().Find(g.Kernel().Identity)
	if err != nil {
		return err
	}
	if p.Partial() {
		e.warn("the profile %s is from a pack: it has only the structures and members that vmav reads", p.Identity)
	}
	s, ok := p.Struct(name)
	if !ok {
		return fmt.Errorf("profile %s has no structure %q", p.Identity, name)
	}
	as := g.Memory()
	if pid := c.String("pid"); pid != "" {
		procs, _, err := g.Processes(c.Context)
		if err != nil {
			return err
		}
		proc, err := findProcess(procs, pid)
		if err != nil {
			return fmt.Errorf("%s: %w", t.describe(), err)
		}
		as = g.Space(proc)
	}
	return printStruct(e, p, s, as, at)
}

// maxStruct bounds the size of a structure that is printed, in bytes.
const maxStruct = 1 << 20

func printStruct(e *env, p *winstruct.Profile, s *winstruct.Struct, as *introspect.AddressSpace, at uint64) error {
	if s.Size > maxStruct {
		return fmt.Errorf("structure %s of %d bytes is too large to print", s.Name, s.Size)
	}
	mem := make([]byte, s.Size)
	if err := as.Read(mem, at); err != nil {
		return fmt.Errorf("read %s: %w", s.Name, err)
	}
	d, err := p.NewDumper(s.Name)
	if err != nil {
		return err
	}
	values, err := d.Dump(s.Name, mem)
	if err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "%s at %#x, 0x%x bytes\n", escape.Text(s.Name), at, s.Size)
	for _, v := range values {
		text := fmt.Sprintf("%#x", v.Value)
		if v.Bytes != nil {
			text = fmt.Sprintf("% x", v.Bytes[:min(len(v.Bytes), 32)])
			if len(v.Bytes) > 32 {
				text += " …"
			}
		}
		fmt.Fprintf(e.stdout, "%s  %s\n", escape.Text(v.Field.String()), text)
	}
	return nil
}
