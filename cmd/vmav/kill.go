package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/kill"
	"vmav.dev/vmav/internal/policy"
	"vmav.dev/vmav/internal/report"
	"vmav.dev/vmav/internal/respond"
	"vmav.dev/vmav/internal/verdict"
)

func killCommand(e *env) *cli.Command {
	return command(&cli.Command{
		Name:      "kill",
		Usage:     "make a guest terminate one of its processes",
		ArgsUsage: "DOMAIN PID",
		Description: "A thread of the process is redirected to the guest's own NtTerminateProcess, with the exit\n" +
			"status 0xc0000906. If the process never runs, a service of the guest, its surrogate, ends it.\n" +
			"This needs the kvm-memhook module. Critical processes of Windows are refused. The printed outcome\n" +
			"was read back from the guest; docs/KILL.md describes what happens in it. Every kill is recorded\n" +
			"(vmav history).\n\n" +
			"EXIT STATUS\n" +
			"   0    the guest's memory shows that the process has ended; with --dry-run: it would be tried\n" +
			"   2    refused, pending at the deadline, failed, or an error\n" +
			"   130  interrupted",
		Flags: append([]cli.Flag{connectFlag(), sourceFlag(), formatFlag(),
			&cli.BoolFlag{Name: "dry-run", Usage: "verify everything that can be verified, say what would be done, and touch nothing"}, stateFlag()},
			append(recordFlags(), killFlags()...)...),
		Action:       func(c *cli.Context) error { return look(c, e, func(v *view) error { return runKill(c, e, v) }) },
		BashComplete: completeDomains(e),
	})
}

// killFlags returns the flags that say how to kill, for the commands that can.
func killFlags() []cli.Flag {
	return []cli.Flag{
		&cli.DurationFlag{Name: "timeout", Value: kill.DefaultTimeout, Usage: "give up a kill after this `TIME`"},
		&cli.StringFlag{Name: "surrogate", Value: "allow", Usage: "whether services may end a process that never runs itself: `allow` or never"},
		&cli.StringSliceFlag{Name: "surrogate-program", Usage: "only processes of the program at `PATH`, without its volume, serve as surrogates; " +
			"can be repeated (default: those of the policy)"},
	}
}

// parseKill reads killFlags, which override the policy.
func parseKill(c *cli.Context, p policy.Policy) (o kill.Options, err error) {
	o.Timeout = c.Duration("timeout")
	if o.Timeout < 100*time.Millisecond || o.Timeout > kill.MaxTimeout {
		return o, fmt.Errorf("a timeout of %v: 100ms to %v are possible", o.Timeout, kill.MaxTimeout)
	}
	o.DryRun = c.Bool("dry-run") || p.DryRun
	if !c.IsSet("surrogate") && !c.IsSet("surrogate-program") {
		o.Policy.Surrogates = p.Surrogates
		return o, nil
	}
	switch s := c.String("surrogate"); s {
	case "allow":
		if o.Policy.Surrogates = c.StringSlice("surrogate-program"); len(o.Policy.Surrogates) == 0 {
			o.Policy.Surrogates = verdict.DefaultSurrogates()
		}
	case "never":
	default:
		return o, fmt.Errorf("surrogate %q: known are allow and never", s)
	}
	return o, nil
}

func runKill(c *cli.Context, e *env, v *view) error {
	policy, err := e.policy(c)
	if err != nil {
		return err
	}
	opt, err := parseKill(c, policy)
	if err != nil {
		return err
	}
	if len(v.rest) != 1 {
		return errors.New("kill needs the pid of a process; vmav kill --help shows the usage")
	}
	procs, _, err := v.guest.Processes(c.Context)
	if err != nil {
		return err
	}
	p, err := findProcess(procs, v.rest[0])
	if err != nil {
		return fmt.Errorf("%s: %w", v.describe(), err)
	}
	settings, err := e.settings(c)
	if err != nil {
		return err
	}
	rec, err := openRecords(c, e, recordWish{})
	if err != nil {
		return err
	}
	defer rec.Close()
	k := rec.Kill(c.Context, v.scanned(), v.guest, p, respond.Options{Kill: opt,
		Kills: respond.KillLock(c.Context, settings.RuntimeDirectory, v.domain.UUID)})
	switch v.format {
	case report.JSON:
		err = report.Document(e.stdout, k)
	case report.Table:
		err = report.WriteKill(e.stdout, k)
	default:
		err = report.Rows(e.stdout, v.format, []finding.Kill{*k}, report.KillColumns)
	}
	if err == nil && !k.Ended() && k.Code != finding.OutcomePlanned {
		err = errIncomplete // the record says why
	}
	return err
}
