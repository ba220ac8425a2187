package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"vmav.dev/vmav/internal/config"
	"vmav.dev/vmav/internal/domain"
)

// env is what every command works with besides its own flags.
type env struct {
	stdout, stderr io.Writer
	config         *config.Config // nil until it is read
}

// newApp assembles the command line. Each command is in a file of its own.
func newApp(stdout, stderr io.Writer) *cli.App {
	e := &env{stdout: stdout, stderr: stderr}
	return &cli.App{
		Name:      "vmav",
		Usage:     "agentless antivirus for Windows guests on KVM",
		UsageText: "vmav [-c URI] COMMAND [options] [DOMAIN]",
		Version:   version,
		Description: "Options are accepted before or after the domain. DOMAIN is an id, a name or a UUID, as for\n" +
			"virsh. With -a FILE a memory image takes its place.\n\n" + exitStatusHelp,
		HideHelpCommand:        true,
		EnableBashCompletion:   true,
		UseShortOptionHandling: false,
		Writer:                 stdout,
		ErrWriter:              stderr,
		Flags:                  []cli.Flag{connectFlag(), sourceFlag("VMAV_SOURCE"), configFlag("VMAV_CONFIG"), stateFlag("VMAV_STATE_DIRECTORY")},
		Commands: []*cli.Command{
			listCommand(e),
			psCommand(e),
			modulesCommand(e),
			driversCommand(e),
			scanCommand(e),
			killCommand(e),
			watchCommand(e),
			hookCommand(e),
			dumpCommand(e),
			rebuildCommand(e),
			historyCommand(e),
			evidenceCommand(e),
			structCommand(e),
			profileCommand(e),
			policyCommand(e),
			checkCommand(e),
			completionCommand(e),
			manCommand(e),
		},
		// The function exitStatus alone decides on exit statuses.
		ExitErrHandler: func(*cli.Context, error) {},
		OnUsageError:   usageError,
		CommandNotFound: func(c *cli.Context, name string) {
			fmt.Fprintf(stderr, "vmav: no command %q; vmav --help lists them\n", name)
		},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return fmt.Errorf("no command %q; vmav --help lists them", c.Args().First())
			}
			return cli.ShowAppHelp(c)
		},
	}
}

// command gives a command what all of them have: help with its exit statuses, and errors in
// one form.
func command(c *cli.Command) *cli.Command {
	if !strings.Contains(c.Description, "EXIT STATUS") { // otherwise it describes its own
		if c.Description != "" {
			c.Description += "\n\n"
		}
		c.Description += exitStatusHelp
	}
	if len(c.Subcommands) == 0 {
		c.Flags = append(c.Flags, configFlag())
	}
	c.OnUsageError = usageError
	return c
}

func usageError(c *cli.Context, err error, _ bool) error {
	name := "vmav"
	if c.Command != nil && c.Command.Name != "" && c.Command.Name != name {
		name += " " + c.Command.Name
	}
	return fmt.Errorf("%w; %s --help shows the usage", err, name)
}

func connectFlag() cli.Flag {
	return &cli.StringFlag{
		Name:    "connect",
		Aliases: []string{"c"},
		Usage:   "libvirt `URI`; without it that of $LIBVIRT_DEFAULT_URI, of the settings, or libvirt's own choice",
	}
}

// sourceFlag chooses how domains are read. Its environment variable is read at one level
// only, so that an option at the other level overrides it.
func sourceFlag(env ...string) cli.Flag {
	return &cli.StringFlag{Name: "source", EnvVars: env, Value: string(domain.Auto),
		Usage: "read domains through `SOURCE`: memhook (the kernel module), qemu (the QEMU process), auto"}
}

// connect connects to the libvirt that the options name. It tells the user once if the
// module should have been used but cannot be. The caller closes the Host.
func connect(c *cli.Context, e *env) (*domain.Host, error) {
	b, err := e.backend(c)
	if err != nil {
		return nil, err
	}
	uri, err := e.uri(c)
	if err != nil {
		return nil, err
	}
	h, err := domain.Connect(uri)
	if err != nil {
		return nil, err
	}
	h.SetBackend(b, func(why error) { e.warn("%v; without the module nothing can be killed", why) })
	return h, nil
}

func imageFlag() cli.Flag {
	return &cli.PathFlag{
		Name:    "image",
		Aliases: []string{"a"},
		Usage:   "read the memory image `FILE` and no domain: raw, an ELF core of virsh dump --memory-only, or LiME",
	}
}

// text returns the value of a string flag, whether it was given after vmav or after the
// command.
func text(c *cli.Context, name string) string {
	for _, level := range c.Lineage() {
		if level.IsSet(name) {
			return level.String(name)
		}
	}
	return c.String(name)
}

// isTerminal reports whether w is a terminal, which can show progress.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0
}
