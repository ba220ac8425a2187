package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"

	"vmav.dev/vmav/internal/config"
	"vmav.dev/vmav/internal/escape"
	"vmav.dev/vmav/internal/history"
	"vmav.dev/vmav/internal/hook"
	"vmav.dev/vmav/internal/lock"
)

// runHook runs `vmav hook run`. libvirt waits for it, so it comes before everything else in
// the program. Its exit status is always 0.
func runHook(args []string) {
	s, err := config.Load(os.Getenv(configVariable))
	if err != nil {
		if s, err = config.Default(); err != nil {
			return
		}
	}
	hook.Run(args, os.Stdin, hook.Options{Runtime: s.RuntimeDirectory, Spool: spoolDirectory(&s), Start: func() error {
		self, err := os.Executable()
		if err != nil {
			return err
		}
		return hook.Detach(self, "hook", "scan") // the child inherits the environment
	}})
}

// configVariable names vmav.toml.
const configVariable = "VMAV_CONFIG"

// spoolDirectory returns the directory of the events that found no running service.
func spoolDirectory(s *config.Config) string { return filepath.Join(s.StateDirectory, "spool") }

func hookCommand(e *env) *cli.Command {
	directory := func() cli.Flag {
		return &cli.StringFlag{Name: "hooks-directory", Value: hook.DefaultDirectory, Usage: "`DIRECTORY` where libvirt looks for hooks"}
	}
	return command(&cli.Command{
		Name:  "hook",
		Usage: "make libvirt tell vmav of domains that start",
		Description: "The hook tells the service that a domain starts. If no service runs, it starts a scan in the\n" +
			"background. It delays the start of a domain by a few milliseconds at most and never prevents it.\n" +
			"libvirt looks for hooks when its daemon starts, so restart the daemon after install and remove.",
		Subcommands: []*cli.Command{
			command(&cli.Command{Name: "install", Usage: "put the hook into qemu.d, beside the hooks that are there", Flags: []cli.Flag{directory()},
				Action: func(c *cli.Context) error { return runHookInstall(c, e) }}),
			command(&cli.Command{Name: "remove", Usage: "remove the hook", Flags: []cli.Flag{directory()},
				Action: func(c *cli.Context) error { return hook.Remove(c.String("hooks-directory")) }}),
			// main runs it before any of this. It is listed only for the help.
			{Name: "run", Usage: "the hook itself, which libvirt runs; it prints nothing and its status is 0",
				ArgsUsage: "NAME OPERATION SUB-OPERATION EXTRA", SkipFlagParsing: true,
				Action: func(c *cli.Context) error { runHook(c.Args().Slice()); return nil }},
			command(&cli.Command{Name: "scan", Usage: "scan the domains whose start found no service", Hidden: true, Flags: watchFlags(),
				Action: func(c *cli.Context) error { return runHookScan(c, e) }}),
		},
	})
}

func runHookInstall(c *cli.Context, e *env) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	// libvirt does not have the environment of the user who installs the hook.
	environment := make(map[string]string)
	if file := text(c, "config"); file != "" {
		if file, err = filepath.Abs(file); err != nil {
			return err
		}
		environment[configVariable] = file
	}
	if source := os.Getenv("VMAV_SOURCE"); source != "" {
		environment["VMAV_SOURCE"] = source
	}
	dir := c.String("hooks-directory")
	if err := hook.Install(dir, self, environment); err != nil {
		return err
	}
	fmt.Fprintf(e.stdout, "installed as %s; libvirt's daemon takes it up when it is restarted\n", escape.Text(hook.Path(dir)))
	return nil
}

// hookScan bounds a scan that stands in for the service. A guest must be up by then.
const hookScan = 30 * time.Minute

// runHookScan scans the domains in the spool. Only one such scan runs at a time. It also
// takes up events that arrive while it runs.
func runHookScan(c *cli.Context, e *env) error {
	settings, err := e.settings(c)
	if err != nil {
		return err
	}
	spool := spoolDirectory(settings)
	for {
		l, err := lock.Try(filepath.Join(settings.RuntimeDirectory, "hook-scan.lock"))
		if errors.Is(err, lock.ErrHeld) {
			return nil
		}
		if err != nil {
			return err
		}
		err = scanSpool(c, e, spool)
		l.Release()
		if err != nil {
			return err
		}
		// An event that came after the last look found the lock held.
		if left, err := hook.List(spool); err != nil || len(left) == 0 {
			return err
		}
	}
}

func scanSpool(c *cli.Context, e *env, spool string) error {
	events, err := hook.List(spool)
	if err != nil || len(events) == 0 {
		return err
	}
	names := make([]string, len(events))
	for i, ev := range events {
		names[i] = ev.Domain
	}
	s, done, err := newService(c, e, history.TriggerHook)
	if err != nil {
		return err
	}
	defer done()
	ctx, cancel := context.WithTimeout(c.Context, hookScan)
	defer cancel()
	err = s.Once(ctx, names, func() []string {
		var more []string
		if events, err = hook.List(spool); err == nil {
			for _, ev := range events {
				more = append(more, ev.Domain)
			}
		}
		return more
	})
	// They are done, or time is up: in neither case are they tried again.
	if c.Context.Err() == nil {
		for _, ev := range events {
			ev.Done()
		}
	}
	return err
}
