package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"vmav.dev/vmav/internal/escape"
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/history"
	"vmav.dev/vmav/internal/report"
	"vmav.dev/vmav/internal/verdict"
)

func historyCommand(e *env) *cli.Command {
	list := func(c *cli.Context) error {
		if c.Args().Present() {
			return fmt.Errorf("no command history %q; vmav history --help lists them", c.Args().First())
		}
		return runHistoryList(c, e)
	}
	return command(&cli.Command{
		Name:  "history",
		Usage: "show what was found, decided and done",
		Description: "Every scan and kill is recorded, and findings are recorded before they are printed. The record is\n" +
			"a chained log that reveals changes to it (docs/HISTORY.md). Without a command the findings are\n" +
			"listed, newest first.",
		Flags:  listFlags(),
		Action: list,
		Subcommands: []*cli.Command{
			command(&cli.Command{Name: "list", Usage: "list findings and kills, newest first", Flags: listFlags(), Action: list}),
			command(&cli.Command{Name: "show", Usage: "explain one finding, kill or run in words", ArgsUsage: "ID",
				Description: "Shows what was found and where, how close the rebuilt file is to the original, what was decided\n" +
					"and why, what was done, what was seen afterwards, and where the evidence is.",
				Flags: []cli.Flag{stateFlag(), formatFlag()}, Action: func(c *cli.Context) error { return runHistoryShow(c, e) }}),
			command(&cli.Command{Name: "verify", Usage: "check that the record is as it was written",
				Description: "Names the first record that was changed, removed or inserted. Note the printed head elsewhere and\n" +
					"give it with --head later: then verify also notices an older copy of the record.\n\n" +
					"EXIT STATUS\n   0    the record is whole\n   2    it is not, or an error",
				Flags:  []cli.Flag{stateFlag(), &cli.StringFlag{Name: "head", Usage: "the `HEAD` that an earlier verify printed, which must be in the record"}},
				Action: func(c *cli.Context) error { return runHistoryVerify(c, e) }}),
			command(&cli.Command{Name: "prune", Usage: "remove the oldest records",
				Description: "Removes whole runs and records that it did. Scans and kills enforce the limits of the settings by themselves.",
				Flags:       append([]cli.Flag{stateFlag()}, limitFlags()...),
				Action:      func(c *cli.Context) error { return runHistoryPrune(c, e) }}),
		},
	})
}

func listFlags() []cli.Flag {
	return []cli.Flag{stateFlag(), formatFlag(),
		&cli.StringFlag{Name: "domain", Usage: "only of the domain with this `NAME` or UUID"},
		&cli.StringFlag{Name: "since", Usage: "only from `TIME` on: a date, a date and a time, or how long ago: 12h, 30d"},
		&cli.StringFlag{Name: "until", Usage: "only before `TIME`"},
		&cli.StringFlag{Name: "signature", Usage: "only of this `NAME`; * stands for any text"},
		&cli.StringFlag{Name: "action", Usage: "only with this `ACTION`: " + strings.Join(verdict.Actions(), ", ")},
		&cli.StringFlag{Name: "outcome", Usage: "only with this `OUTCOME`, its first word: reported, killed, failed, requested"},
		&cli.StringFlag{Name: "sha256", Usage: "only with this `HASH` of the file or of evidence"},
		&cli.IntFlag{Name: "limit", Usage: "only the newest `N`"},
		&cli.BoolFlag{Name: "runs", Usage: "list the scans and kills as they ran, also those that found nothing"},
	}
}

// openHistory opens the history for reading. It returns nil if there is none.
func openHistory(c *cli.Context, e *env) (*history.DB, error) {
	dir, err := e.stateDirectory(c)
	if err != nil {
		return nil, err
	}
	db, err := history.OpenExisting(dir)
	if errors.Is(err, fs.ErrNotExist) {
		e.warn("no history in %s", dir)
		return nil, nil
	}
	return db, err
}

var entryColumns = []report.Column[history.Entry]{
	{Title: "ID", Text: func(x history.Entry) string { return strconv.FormatInt(x.ID, 10) }, Right: true},
	{Title: "TIME", Text: func(x history.Entry) string { return clock(&x.Time) }},
	{Title: "DOMAIN", Text: func(x history.Entry) string { return x.Domain }},
	{Title: "PID", Text: func(x history.Entry) string { return strconv.FormatUint(x.PID, 10) }, Right: true},
	{Title: "PROCESS", Text: func(x history.Entry) string { return finding.Owner(x.PID, x.Process) }},
	{Title: "IMAGE", Text: func(x history.Entry) string { return x.Image }},
	{Title: "SIGNATURE", Text: func(x history.Entry) string { return dash(x.Signature) }},
	{Title: "ACTION", Text: func(x history.Entry) string { return string(x.Action) }},
	{Title: "OUTCOME", Text: func(x history.Entry) string { return x.Text() }},
}

var runColumns = []report.Column[history.Scan]{
	{Title: "ID", Text: func(s history.Scan) string { return strconv.FormatInt(s.ID, 10) }, Right: true},
	{Title: "BEGAN", Text: func(s history.Scan) string { return clock(&s.Began) }},
	{Title: "WHAT", Text: func(s history.Scan) string { return s.Operation }},
	{Title: "DOMAIN", Text: func(s history.Scan) string { return s.Domain }},
	{Title: "STATUS", Text: func(s history.Scan) string { return s.Status }},
	{Title: "FINDINGS", Text: func(s history.Scan) string { return strconv.Itoa(s.Findings) }, Right: true},
	{Title: "ERRORS", Text: func(s history.Scan) string {
		if s.Result == nil {
			return "-"
		}
		return strconv.Itoa(len(s.Result.Errors) + s.Omitted)
	}, Right: true},
	{Title: "TRIGGER", Text: func(s history.Scan) string { return s.Trigger }},
	{Title: "USER", Text: func(s history.Scan) string { return s.Who.String() }},
}

func runHistoryList(c *cli.Context, e *env) error {
	format, err := report.ParseFormat(c.String("format"))
	if err != nil {
		return err
	}
	f := history.Filter{Domain: c.String("domain"), Signature: c.String("signature"), Action: c.String("action"), Outcome: finding.Code(c.String("outcome")),
		SHA256: c.String("sha256"), Limit: c.Int("limit")}
	if f.Limit < 0 {
		return fmt.Errorf("a limit of %d: it is a number of records", f.Limit)
	}
	if f.Since, err = parseTime(c.String("since")); err != nil {
		return err
	}
	if f.Until, err = parseTime(c.String("until")); err != nil {
		return err
	}
	if c.Bool("runs") && (f.Signature != "" || f.Action != "" || f.Outcome != "" || f.SHA256 != "") {
		return errors.New("--runs goes with --domain, --since, --until and --limit: a run has no signature, action, outcome or file")
	}
	db, err := openHistory(c, e)
	if err != nil {
		return err
	}
	var entries []history.Entry
	var runs []history.Scan
	if db != nil {
		defer db.Close()
		if c.Bool("runs") {
			runs, err = db.Scans(c.Context, f)
		} else {
			entries, err = db.Entries(c.Context, f)
		}
		if err != nil {
			return err
		}
	}
	if c.Bool("runs") {
		return report.Rows(e.stdout, format, runs, runColumns)
	}
	return report.Rows(e.stdout, format, entries, entryColumns)
}

func runHistoryShow(c *cli.Context, e *env) error {
	format, err := report.ParseFormat(c.String("format"))
	if err != nil {
		return err
	}
	if format == report.CSV {
		return errors.New("one record has no form as CSV; table, json and jsonl are possible")
	}
	id, err := strconv.ParseInt(c.Args().First(), 10, 64)
	if c.NArg() != 1 || err != nil {
		return errors.New("history show needs the ID of one record, as history list prints it")
	}
	db, err := openHistory(c, e)
	if err != nil {
		return err
	}
	if db == nil {
		return errIncomplete
	}
	defer db.Close()
	d, err := db.Show(c.Context, id)
	if err == nil {
		return writeRecord(e, format, &d, history.Explain(&d))
	}
	if !errors.Is(err, history.ErrNoRecord) {
		return err
	}
	s, err := db.Scan(c.Context, id)
	if errors.Is(err, history.ErrNoRecord) {
		return fmt.Errorf("record %d: there is no finding, kill or run of this ID", id)
	}
	if err != nil {
		return err
	}
	return writeRecord(e, format, &s, history.ExplainRun(&s))
}

func writeRecord[T any](e *env, f report.Format, record *T, lines []history.Line) error {
	switch f {
	case report.JSON:
		return report.Document(e.stdout, record)
	case report.JSONL:
		return report.Rows(e.stdout, f, []*T{record}, nil)
	}
	for _, l := range lines {
		if _, err := fmt.Fprintf(e.stdout, "%-10s %s\n", l.Label+":", escape.Text(l.Text)); err != nil {
			return err
		}
	}
	return nil
}

func runHistoryVerify(c *cli.Context, e *env) error {
	var noted *history.Head
	if s := c.String("head"); s != "" {
		h, err := history.ParseHead(s)
		if err != nil {
			return err
		}
		noted = &h
	}
	db, err := openHistory(c, e)
	if err != nil {
		return err
	}
	if db == nil {
		return errIncomplete
	}
	defer db.Close()
	v, err := db.Verify(c.Context, noted)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(e.stdout, "%s: whole: %d records, from %d on\nhead: %s\n", escape.Text(db.Path()), v.Records, v.First, v.Head)
	return err
}

func runHistoryPrune(c *cli.Context, e *env) error {
	limits, _, err := e.limits(c)
	if err == nil {
		err = parseLimits(c, &limits.Age, &limits.Size)
	}
	if err != nil {
		return err
	}
	db, err := openHistory(c, e)
	if err != nil || db == nil {
		return err
	}
	defer db.Close()
	p, err := db.Prune(c.Context, history.Self(history.TriggerCLI, os.Args), limits)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(e.stdout, "%d records removed, %d bytes are in use\n", p.Records, p.Bytes)
	return err
}
