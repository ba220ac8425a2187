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
		Description: "vmav rebuilds the file of every image in every process, and of every driver, and scans it. It\n" +
			"uses the clamd of the host. If none answers or --database is given, it runs a private one until\n" +
			"the scan ends. After the scan the policy decides what is done about findings (docs/POLICY.md).\n" +
			"Without a policy nothing in the guest is changed, except that --page-in makes it read in pages.\n" +
			"An action that is not known to have worked makes the scan incomplete. Findings are recorded in\n" +
			"the history before they are reported (vmav history); a finding that cannot be recorded makes the\n" +
			"scan incomplete. What has not changed by a byte since an earlier scan with the same signatures\n" +
			"is not scanned again.\n\n" +
			"Only one scan of all domains runs at a time. Another one that is started meanwhile ends at once\n" +
			"with status 0; the status of the first one counts. With --wait it waits. If a scan with the same\n" +
			"options began in the meantime, it takes over the result of that one and does not scan again.",
		Flags: append([]cli.Flag{connectFlag(), sourceFlag(), imageFlag(), formatFlag(),
			&cli.BoolFlag{Name: "all", Usage: "scan every running domain; those that are not Windows are skipped"},
			&cli.BoolFlag{Name: "wait", Usage: "with --all: wait for another scan of all domains that is under way, and do not end at once"},
			&cli.DurationFlag{Name: "deadline", Usage: "end after `TIME`; domains that were not reached by then are errors"},
			&cli.BoolFlag{Name: "resume", Usage: "with --all: leave out the domains that an interrupted scan has done within the last day"},
			&cli.BoolFlag{Name: "dry-run", Usage: "say what would be done, and touch nothing"},
			&cli.BoolFlag{Name: "infected", Aliases: []string{"i"}, Usage: "print findings and errors only, and nothing if there are none"},
			&cli.Uint64SliceFlag{Name: "pid", Usage: "scan only the process `PID`; can be repeated"},
			holdFlag(),
			stateFlag(),
		}, slices.Concat(scanningFlags(), recordFlags(), pageInFlags(), policyFlags(), killFlags(), profileFlags())...),
		Action:       func(c *cli.Context) error { return runScan(c, e) },
		BashComplete: completeDomains(e),
	})
}

// scanOptions are the checked options of one scan.
type scanOptions struct {
	format  report.Format
	compact bool
	all     allOptions
	holds   *respond.Holds // nil if nothing may be held
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

// scanThem scans the targets that the options name.
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
			// Nothing more can be scanned. What was found is reported.
			out.Domains = append(out.Domains, notReached(targets[i+1:], ended)...)
			break
		}
		if err := point.Add(keyOf(t.domain), d); err != nil {
			e.warn("%v", err)
		}
	}
	bar.clear()
	_ = point.Close(ended == nil && out.Complete()) // the next sweep works without it
	out.Summarise(time.Since(begin))
	err = writeScan(e, o, out)
	o.holds.Wait(ctx, e)
	if err != nil {
		return err
	}
	return scanStatus(out, ended)
}

// scanTarget is a domain or image to scan. It is opened only when its turn comes.
type scanTarget struct {
	domain domain.Domain
	open   func(context.Context) (*target, error)
}

// scanTargets resolves what is to be scanned. A domain that is named must exist. With
// --all, a domain that has gone away meanwhile is a failure of its own.
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
		// Only the findings go to stdout. What could not be read goes to stderr.
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

// scanStatus returns the error that stands for the exit status of a scan. An interruption
// and an incomplete scan take precedence over findings.
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
