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
	"vmav.dev/vmav/internal/watch"
)

// runHook is `vmav hook run`, which libvirt waits for: it comes before everything else that
// the program does, and whatever happens its status is 0.
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
		return hook.Detach(self, "hook", "scan") // it has our environment
	}})
}

// configVariable names vmav.toml.
const configVariable = "VMAV_CONFIG"

// spoolDirectory is where events wait that found no service.
func spoolDirectory(s *config.Config) string { return filepath.Join(s.StateDirectory, "spool") }

func hookCommand(e *env) *cli.Command {
	directory := func() cli.Flag {
		return &cli.StringFlag{Name: "hooks-directory", Value: hook.DefaultDirectory, Usage: "`DIRECTORY` where libvirt looks for hooks"}
	}
	return command(&cli.Command{
		Name:  "hook",
		Usage: "have libvirt tell vmav of domains that start",
		Description: "The hook hands the start of a domain to the service or, where none runs, to a scan of its own that\n" +
			"starts in the background. It delays no start by more than some milliseconds and can fail none.\n" +
			"libvirt looks for hooks when its daemon starts: restart that after install and remove.",
		Subcommands: []*cli.Command{
			command(&cli.Command{Name: "install", Usage: "put the hook into qemu.d, beside what else is there", Flags: []cli.Flag{directory()},
				Action: func(c *cli.Context) error { return runHookInstall(c, e) }}),
			command(&cli.Command{Name: "remove", Usage: "take it out again", Flags: []cli.Flag{directory()},
				Action: func(c *cli.Context) error { return hook.Remove(c.String("hooks-directory")) }}),
			// main runs it before any of this; it stands here for the help alone.
			{Name: "run", Usage: "the hook itself: for libvirt, silent, status 0", ArgsUsage: "NAME OPERATION SUB-OPERATION EXTRA", SkipFlagParsing: true,
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
	// libvirt's environment is not the one of who installs.
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

// hookScan bounds a scan that stands in for the service: a guest must be up by then.
const hookScan = 30 * time.Minute

// runHookScan scans what is in the spool. One runs at a time; it takes up what comes
// meanwhile.
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
		// What came after the last look found the lock held.
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
	opt, done, err := watchOptions(c, e, history.TriggerHook)
	if err != nil {
		return err
	}
	defer done()
	s, err := watch.New(opt)
	if err != nil {
		return err
	}
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
	// Done, or given up after all that time: in both cases they are not tried for ever.
	if c.Context.Err() == nil {
		for _, ev := range events {
			ev.Done()
		}
	}
	return err
}
