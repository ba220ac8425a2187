package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/urfave/cli/v2"

	"vmav.dev/vmav/internal/clam"
	"vmav.dev/vmav/internal/domain"
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/report"
	"vmav.dev/vmav/internal/respond"
	"vmav.dev/vmav/internal/scan"
	"vmav.dev/vmav/internal/verdict"
)

func scanCommand(e *env) *cli.Command {
	return command(&cli.Command{
		Name:      "scan",
		Usage:     "rebuild the programs running in guests and scan them with ClamAV",
		ArgsUsage: "DOMAIN… | --all",
		Description: "Every image mapped in every process, and every driver, is rebuilt into its on-disk form and\n" +
			"scanned. clamd is the host's or, where none answers or --database is given, a private one for\n" +
			"as long as the scan runs. What is done about findings, when all is scanned, is the policy's\n" +
			"to say (docs/POLICY.md): without one nothing is changed in the guest; --page-in has it read in\n" +
			"what is in no memory. An action that is not known to have worked leaves the scan incomplete.\n" +
			"Findings are recorded in the history before they are told of (vmav history); one that could\n" +
			"not be leaves the scan incomplete. What has not changed since an earlier scan, byte for byte,\n" +
			"and was scanned with the signatures of now is not scanned again.\n\n" +
			"One scan of all domains runs at a time. Another one that starts meanwhile ends with 0 at once: the\n" +
			"status of the first is the one to go by. With --wait it waits, and takes the result of one that\n" +
			"began after it was started: several that wait come to one scan and one status.",
		Flags: append([]cli.Flag{connectFlag(), sourceFlag(), imageFlag(), formatFlag(),
			&cli.BoolFlag{Name: "all", Usage: "every running domain; those that are not Windows are skipped"},
			&cli.BoolFlag{Name: "wait", Usage: "with --all: wait for one that is under way; without, there is nothing to do then"},
			&cli.DurationFlag{Name: "deadline", Usage: "end after `TIME`; what was not reached by then is an error"},
			&cli.BoolFlag{Name: "resume", Usage: "with --all: leave out what an interrupted one, within a day, has done"},
			&cli.BoolFlag{Name: "dry-run", Usage: "say what would be done, and touch nothing"},
			&cli.BoolFlag{Name: "infected", Aliases: []string{"i"}, Usage: "print findings and errors only; nothing where there are none"},
			&cli.Uint64SliceFlag{Name: "pid", Usage: "only the process `PID`; can be repeated"},
			holdFlag(),
			stateFlag(),
		}, slices.Concat(scanningFlags(), recordFlags(), pageInFlags(), policyFlags(), killFlags(), profileFlags())...),
		Action:       func(c *cli.Context) error { return runScan(c, e) },
		BashComplete: completeDomains(e),
	})
}

// scanOptions are the options of one scan, checked.
type scanOptions struct {
	format  report.Format
	compact bool
	all     allOptions
	holds   *respond.Holds // nil where nothing may be held
	engine  clam.Options
	request scan.Request
	respond respond.Options
}

func parseScan(c *cli.Context, e *env, bar *progress) (o scanOptions, err error) {
	if o.format, err = report.ParseFormat(c.String("format")); err != nil {
		return o, err
	}
	policy, how, err := e.verdicts(c)
	if err != nil {
		return o, err
	}
	switch action := c.String("action"); {
	case how.DryRun && c.Bool("dry-run") && !policy.Acts():
		return o, errors.New("--dry-run is for --action kill and policies that do something: this one touches no guest")
	case c.IsSet("action") && policy.Acts() && c.Path("image") != "":
		return o, fmt.Errorf("action %s: nothing runs in a memory image", action)
	case c.IsSet("action") && policy.Acts(verdict.Kill, verdict.Hold) && text(c, "source") == string(domain.QEMU):
		return o, fmt.Errorf("action %s needs the kvm-memhook module: it does not go with --source qemu", action)
	}
	pageIn, err := parsePageIn(c)
	if err != nil {
		return o, err
	}
	if o.request, err = parseScanning(c); err != nil {
		return o, err
	}
	switch all, image, n := c.Bool("all"), c.Path("image") != "", c.NArg(); {
	case all && (image || n > 0):
		return o, errors.New("--all scans every domain: it goes with no domain and no image")
	case image && n > 0:
		return o, errors.New("-a puts an image in the place of domains: it goes with no domain")
	case !all && !image && n == 0:
		return o, errors.New("scan needs domains, --all or a memory image with -a; vmav scan --help shows the usage")
	}
	if o.holds, err = parseHolds(c); err != nil {
		return o, err
	}
	o.compact = c.Bool("infected")
	settings, err := e.settings(c)
	if err != nil {
		return o, err
	}
	if o.all, err = parseAll(c, settings); err != nil {
		return o, err
	}
	o.engine = engineOptions(c, settings)
	o.engine.Progress = func(s string) { bar.note(s) }
	if o.all.identity, err = identity(c, policy); err != nil {
		return o, err
	}
	o.request.PIDs, o.request.PageIn = c.Uint64Slice("pid"), pageIn
	o.respond = respond.Options{Policy: policy.Policy, Kill: how, Observer: bar}
	if o.holds != nil {
		o.respond.Holder = o.holds
	}
	return o, nil
}

func runScan(c *cli.Context, e *env) error {
	bar := newProgress(e.stderr)
	defer bar.clear()
	o, err := parseScan(c, e, bar)
	if err != nil {
		return err
	}
	ctx, cancel := o.all.bound(c.Context)
	defer cancel()
	if c.Bool("all") {
		return runAlone(ctx, e, o, func() error { return scanThem(ctx, c, e, o, bar) })
	}
	return scanThem(ctx, c, e, o, bar)
}

// scanThem scans what the options name.
func scanThem(ctx context.Context, c *cli.Context, e *env, o scanOptions, bar *progress) error {
	begin := time.Now()
	profiles, err := newFinder(c, e)
	if err != nil {
		return err
	}
	o.respond.Profiles = profiles
	targets, done, err := scanTargets(c, e)
	if err != nil {
		return err
	}
	defer done()
	tell, err := e.notifier(c, c.String("trigger"))
	if err != nil {
		return err
	}
	defer e.told(c.Context, tell)
	keeps := respond.KeepsEvidence(o.respond.Policy)
	rec, err := openRecords(c, e, recordWish{evidence: keeps, tell: tell, dryRun: o.respond.Policy.DryRun})
	if err != nil {
		return err
	}
	defer rec.Close()
	o.request.Content = keeps || c.Bool("evidence")
	engine, err := clam.Open(ctx, o.engine)
	if err != nil {
		return err
	}
	defer engine.Close()
	out := &finding.Sweep{Engine: engineOf(engine.Info()), Domains: []finding.Scan{}}
	rec.ScannedBy(out.Engine)
	cache, kept, err := e.openCache(c, !rec.Kept() && !c.Bool("no-history"))
	if err != nil {
		return err
	}
	defer kept()
	point, err := o.checkpoint(c, e, out.Engine, begin)
	if err != nil {
		return err
	}
	scanner := newScanner(c, e, scan.Means{Profiles: profiles, Engine: engine, Memory: cache})
	var ended error
	for i, t := range targets {
		d, known := point.Find(keyOf(t.domain))
		if known {
			out.Domains = append(out.Domains, d)
			continue
		}
		d, err = scanOne(ctx, t, scanner, o, rec)
		out.Domains = append(out.Domains, d)
		if err != nil && (ctx.Err() != nil || errors.Is(err, clam.ErrEngineGone)) {
			if ended = err; errors.Is(err, context.DeadlineExceeded) {
				ended = context.Cause(ctx)
			}
			// Nothing more can be scanned; what was found is reported.
			out.Domains = append(out.Domains, notReached(targets[i+1:], ended)...)
			break
		}
		if err := point.Add(keyOf(t.domain), d); err != nil {
			e.warn("%v", err)
		}
	}
	bar.clear()
	_ = point.Close(ended == nil && out.Complete()) // the next sweep does without
	out.Summarise(time.Since(begin))
	err = writeScan(e, o, out)
	o.holds.Wait(ctx, e)
	if err != nil {
		return err
	}
	return scanStatus(out, ended)
}

// scanTarget is a domain or image to scan, opened only when its turn comes.
type scanTarget struct {
	domain domain.Domain
	open   func(context.Context) (*target, error)
}

// scanTargets resolves what is to be scanned. A domain that is named must exist;
// with --all one that went away meanwhile is a failure of its own.
func scanTargets(c *cli.Context, e *env) ([]scanTarget, func(), error) {
	if c.Path("image") != "" {
		t, _, done, err := openTarget(c, e)
		if err != nil {
			return nil, nil, err
		}
		return []scanTarget{{t.domain, func(context.Context) (*target, error) { return t, nil }}}, done, nil
	}
	h, err := connect(c, e)
	if err != nil {
		return nil, nil, err
	}
	var doms []domain.Domain
	if c.Bool("all") {
		doms, err = h.List(false)
	} else {
		for _, name := range c.Args().Slice() {
			var d domain.Domain
			if d, err = h.Find(name); err != nil {
				break
			}
			doms = append(doms, d)
		}
	}
	if err != nil {
		h.Close()
		return nil, nil, err
	}
	var out []scanTarget
	for _, d := range doms {
		out = append(out, scanTarget{d, func(ctx context.Context) (*target, error) { return openDomain(ctx, h, d) }})
	}
	return out, func() { h.Close() }, nil
}

// scanOne scans a target and responds to what is found in it.
func scanOne(ctx context.Context, st scanTarget, scanner scan.Scanner, o scanOptions, rec *respond.Records) (d finding.Scan, err error) {
	account := rec.Begin(ctx, st.domain.Name, st.domain.UUID)
	defer func() { account.End(ctx, &d) }()
	t, err := st.open(ctx)
	if err != nil {
		d = scan.Empty(scan.Target{Name: st.domain.Name, UUID: st.domain.UUID, State: st.domain.State})
		d.Reason = err.Error()
		return d, err
	}
	defer o.holds.Done(t.source)
	how := o.respond
	how.Recorder, how.Kills = account, respond.KillLock(ctx, o.all.runtime, st.domain.UUID)
	return respond.Scan(ctx, scanner, t.scanned(), o.request, how)
}

func engineOf(i clam.Info) finding.Engine {
	return finding.Engine{Version: i.Version, Database: i.Database, Built: stamp(i.BuildTime), Private: i.Private}
}

func writeScan(e *env, o scanOptions, s *finding.Sweep) error {
	var findings []finding.Finding
	for _, d := range s.Domains {
		findings = append(findings, d.Findings...)
	}
	switch o.format {
	case report.JSON:
		return report.Document(e.stdout, s)
	case report.JSONL, report.CSV:
		// The findings alone; what could not be read goes to stderr.
		for _, d := range s.Domains {
			if d.Profile == finding.ProfileInferred {
				e.warn("%s: profile: inferred from Windows %s: there is none for %s", d.Name, d.InferredFrom, d.Missing)
			}
			if d.Status == finding.StatusFailed || d.Status == finding.StatusSkipped {
				e.warn("%s: %s: %s", d.Name, d.Status, d.Reason)
			}
			for _, x := range d.Errors {
				e.warn("%s: %s: %s", d.Name, x.What, x.Error)
			}
		}
		return report.Rows(e.stdout, o.format, findings, report.FindingColumns)
	}
	return report.WriteScan(e.stdout, s, o.compact)
}

// scanStatus is the exit status of a scan: an interruption and an incomplete scan
// come before what was found.
func scanStatus(s *finding.Sweep, ended error) error {
	switch {
	case ended != nil:
		return ended
	case s.Summary.Failed > 0 || s.Summary.Incomplete > 0:
		return errIncomplete
	case s.Summary.Findings > 0:
		return errFound
	}
	return nil
}
