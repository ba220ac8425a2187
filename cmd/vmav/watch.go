package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"vmav.dev/vmav/internal/escape"
	"vmav.dev/vmav/internal/history"
	"vmav.dev/vmav/internal/report"
	"vmav.dev/vmav/internal/respond"
	"vmav.dev/vmav/internal/watch"
	"vmav.dev/vmav/internal/worker/broker"
)

func watchCommand(e *env) *cli.Command {
	return command(&cli.Command{
		Name:  "watch",
		Usage: "run the service, which sweeps each Windows domain when it starts and scans what is new in it at once",
		Description: "The service follows the domains of a libvirt. It scans each Windows in full when its kernel is up\n" +
			"and again at intervals. It scans new processes and images within milliseconds. The policy decides\n" +
			"what is done about findings. [watch] of the settings says which domains are watched, how often,\n" +
			"and within which budget. The service survives restarts of libvirt, clamd, QEMU and the module\n" +
			"(docs/WATCH.md). Its log goes to stderr.\n\n" +
			"EXIT STATUS\n" +
			"   0    stopped by SIGTERM or SIGINT\n" +
			"   2    an error, or a service runs already",
		Flags:  watchFlags(),
		Action: func(c *cli.Context) error { return runWatch(c, e) },
		Subcommands: []*cli.Command{
			command(&cli.Command{Name: "status", Usage: "show the state of the running service and of its domains",
				Flags:  []cli.Flag{formatFlag()},
				Action: func(c *cli.Context) error { return runWatchStatus(c, e) }}),
		},
	})
}

// watchFlags returns the flags of the service and of the scan that stands in for it.
func watchFlags() []cli.Flag {
	return slices.Concat([]cli.Flag{connectFlag(), sourceFlag(),
		&cli.BoolFlag{Name: "dry-run", Usage: "say what would be done, and touch nothing"},
		&cli.StringFlag{Name: "log", Value: "text", Usage: "`FORMAT` of the log: text or json"},
		&cli.BoolFlag{Name: "debug", Usage: "log every event and every new process"},
	}, scanningFlags(), policyFlags(), recordFlags(), killFlags(), profileFlags())
}

// watchOptions returns the options of the service, from flags and settings. The caller
// calls done, which releases what they hold.
func watchOptions(c *cli.Context, e *env, trigger string) (o watch.Options, done func(), err error) {
	if c.Args().Present() {
		return o, nil, fmt.Errorf("%s has no operation %q; vmav watch --help shows the usage", c.Command.Name, c.Args().First())
	}
	settings, err := e.settings(c)
	if err != nil {
		return o, nil, err
	}
	policy, how, err := e.verdicts(c)
	if err != nil {
		return o, nil, err
	}
	for _, w := range policy.Warnings {
		e.warn("%v", w)
	}
	if o.URI, err = e.uri(c); err != nil {
		return o, nil, err
	}
	if o.Backend, err = e.backend(c); err != nil {
		return o, nil, err
	}
	if o.Request, err = parseScanning(c); err != nil {
		return o, nil, err
	}
	if o.Profiles, err = newFinder(c, e); err != nil {
		return o, nil, err
	}
	level := slog.LevelInfo
	if c.Bool("debug") {
		level = slog.LevelDebug
	}
	switch format := c.String("log"); format {
	case "text":
		o.Log = slog.New(slog.NewTextHandler(e.stderr, &slog.HandlerOptions{Level: level}))
	case "json":
		o.Log = slog.New(slog.NewJSONHandler(e.stderr, &slog.HandlerOptions{Level: level}))
	default:
		return o, nil, fmt.Errorf("log format %q: known are text and json", format)
	}
	tell, err := e.notifier(c, trigger)
	if err != nil {
		return o, nil, err
	}
	keeps := respond.KeepsEvidence(policy.Policy)
	rec, err := openRecords(c, e, recordWish{evidence: keeps, trigger: trigger, tell: tell, dryRun: policy.DryRun})
	if err != nil {
		return o, nil, err
	}
	o.Accounts, o.Request.Content = rec, keeps || c.Bool("evidence")
	memory, kept, err := e.openCache(c, !rec.Kept() && !c.Bool("no-history"))
	if err != nil {
		return o, nil, err
	}
	o.Results = memory
	w := settings.Watch
	o.Include, o.Exclude = w.Domains.Include, w.Domains.Exclude
	o.Poll, o.Interval, o.Jitter = w.Poll, w.Interval, w.Jitter
	o.CPU, o.Memory, o.Slots = float64(w.CPUPercent), w.Memory, settings.Clamd.Slots
	o.Engine = engineOptions(c, settings)
	o.Policy, o.Kill = policy.Policy, how
	if !c.Bool("no-sandbox") {
		o.Scanners = &broker.Runner{Notes: logged{o.Log}}
	}
	o.Runtime = settings.RuntimeDirectory
	return o, func() { e.told(c.Context, tell); rec.Close(); kept() }, nil
}

// newService makes the service of flags and settings. trigger says what started it. The
// caller calls done.
func newService(c *cli.Context, e *env, trigger string) (s *watch.Service, done func(), err error) {
	opt, done, err := watchOptions(c, e, trigger)
	if err != nil {
		return nil, nil, err
	}
	if s, err = watch.New(opt); err != nil {
		done()
		return nil, nil, err
	}
	return s, done, nil
}

// logged writes notes about workers into the log.
type logged struct{ log *slog.Logger }

// Note implements broker.Notes.
func (l logged) Note(text string) { l.log.Warn(text) }

func runWatch(c *cli.Context, e *env) error {
	s, done, err := newService(c, e, history.TriggerWatch)
	if err != nil {
		return err
	}
	defer done()
	err = s.Run(c.Context)
	if errors.Is(err, watch.ErrRunning) {
		return fmt.Errorf("%w: vmav watch status shows it", err)
	}
	if err == nil && c.Context.Err() != nil {
		return errStopped
	}
	return err
}

// domainColumns are the columns of the table of watched domains.
var domainColumns = []report.Column[watch.DomainStatus]{
	{Title: "DOMAIN", Text: func(d watch.DomainStatus) string { return d.Name }},
	{Title: "STATE", Text: func(d watch.DomainStatus) string { return d.State }},
	{Title: "WINDOWS", Text: func(d watch.DomainStatus) string { return dash(d.Build) }},
	{Title: "SOURCE", Text: func(d watch.DomainStatus) string { return dash(d.Source) }},
	{Title: "PROCESSES", Text: func(d watch.DomainStatus) string { return fmt.Sprint(d.Processes) }, Right: true},
	{Title: "DUE", Text: func(d watch.DomainStatus) string { return fmt.Sprint(d.Due) }, Right: true},
	{Title: "FINDINGS", Text: func(d watch.DomainStatus) string { return fmt.Sprint(d.Findings) }, Right: true},
	{Title: "KILLS", Text: func(d watch.DomainStatus) string { return fmt.Sprint(d.Kills) }, Right: true},
	{Title: "LAST SWEEP (UTC)", Text: func(d watch.DomainStatus) string { return clock(d.LastSweep) }},
	{Title: "RESULT", Text: func(d watch.DomainStatus) string { return dash(d.Status) }},
	{Title: "NOTE", Text: func(d watch.DomainStatus) string { return dash(d.Reason) }},
}

func runWatchStatus(c *cli.Context, e *env) error {
	f, err := report.ParseFormat(c.String("format"))
	if err != nil {
		return err
	}
	settings, err := e.settings(c)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.Context, 10*time.Second)
	defer cancel()
	client, err := watch.Dial(ctx, settings.RuntimeDirectory)
	if err != nil {
		return err
	}
	defer client.Close()
	st, err := client.Status(ctx)
	if err != nil {
		return err
	}
	switch f {
	case report.JSON:
		return report.Document(e.stdout, st)
	case report.Table:
		libvirt, engine := "connected", st.Engine
		if !st.Connected {
			libvirt = "no connection"
		}
		if st.EngineErr != "" {
			engine = "none: " + st.EngineErr
		}
		fmt.Fprintf(e.stdout, "Service:   pid %d, since %s UTC, %.1f s of processor time\n", st.PID, clock(&st.Since), st.CPU)
		fmt.Fprintf(e.stdout, "libvirt:   %s, %s\n", escape.Text(dash(st.URI)), libvirt)
		fmt.Fprintf(e.stdout, "Engine:    %s\n", escape.Text(engine))
		fmt.Fprintf(e.stdout, "So far:    %d sweeps, %d new processes, %d findings, %d kills\n\n", st.Counts.Sweeps, st.Counts.Newcomers, st.Counts.Findings,
			st.Counts.Kills)
	}
	return report.Rows(e.stdout, f, st.Domains, domainColumns)
}
