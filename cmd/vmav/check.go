package main

import (
	"github.com/urfave/cli/v2"

	"vmav.dev/vmav/internal/clam"
	"vmav.dev/vmav/internal/ready"
	"vmav.dev/vmav/internal/report"
)

var checkColumns = []report.Column[ready.Answer]{
	{Title: "CHECK", Text: func(a ready.Answer) string { return a.What }},
	{Title: "STATE", Text: func(a ready.Answer) string {
		switch {
		case a.OK:
			return "ok"
		case a.Optional:
			return "absent"
		}
		return "MISSING"
	}},
	{Title: "DETAIL", Text: func(a ready.Answer) string {
		if a.Fix != "" {
			return a.Detail + "; run: " + a.Fix
		}
		return a.Detail
	}},
}

func checkCommand(e *env) *cli.Command {
	return command(&cli.Command{
		Name:  "check",
		Usage: "check whether this host is ready, and say what is missing and which command mends it",
		Description: "What is \"absent\" is not needed for scanning. The kernel module, for instance, is needed only for killing.\n\n" +
			"EXIT STATUS\n" +
			"   0    ready\n" +
			"   2    something that is needed is missing, or an error\n" +
			"   130  interrupted",
		Flags:  []cli.Flag{connectFlag(), sourceFlag(), formatFlag()},
		Action: func(c *cli.Context) error { return runCheck(c, e) },
	})
}

func runCheck(c *cli.Context, e *env) error {
	f, err := report.ParseFormat(c.String("format"))
	if err != nil {
		return err
	}
	h := ready.Local()
	cfg, answers := h.Settings(text(c, "config"))
	// If the settings cannot be read, their defaults and the options hold.
	e.config = &cfg
	backend, err := e.backend(c)
	if err != nil {
		return err
	}
	uri, err := e.uri(c)
	if err != nil {
		return err
	}
	answers = append(answers, h.KVM(), h.Libvirt(c.Context, uri, backend), h.Ptrace())
	answers = append(answers, h.Module()...)
	answers = append(answers, h.Engine(c.Context, clam.Options{Socket: cfg.Clamd.Socket, Databases: cfg.Clamd.Databases})...)
	answers = append(answers, h.Profiles())
	answers = append(answers, h.Service()...)
	answers = append(answers,
		h.Directory("state", cfg.StateDirectory, uint64(cfg.History.MaxSize+cfg.Evidence.MaxSize+cfg.Cache.MaxSize)),
		h.Directory("runtime", cfg.RuntimeDirectory, 0))
	answers = append(append(answers, h.Sandbox()...), checkWorker(c.Context))
	if err := report.Rows(e.stdout, f, answers, checkColumns); err != nil {
		return err
	}
	if !ready.Ready(answers) {
		return errIncomplete
	}
	return nil
}
