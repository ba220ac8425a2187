package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"github.com/urfave/cli/v2"

	"vmav.dev/vmav/internal/escape"
	"vmav.dev/vmav/internal/evidence"
	"vmav.dev/vmav/internal/history"
	"vmav.dev/vmav/internal/report"
)

func evidenceCommand(e *env) *cli.Command {
	return command(&cli.Command{
		Name:  "evidence",
		Usage: "list, extract and prune the files and memory in which something was found",
		Description: "Evidence is stored sealed, which means compressed and encrypted, so that nobody runs it and no\n" +
			"scanner on this host finds it (docs/HISTORY.md). SHA256 is the hash of an item's content, or the\n" +
			"first digits of it.",
		Subcommands: []*cli.Command{
			command(&cli.Command{Name: "list", Usage: "list what is stored, oldest first", Flags: []cli.Flag{stateFlag(), formatFlag()},
				Action: func(c *cli.Context) error { return runEvidenceList(c, e) }}),
			command(&cli.Command{Name: "show", Usage: "show one item, and the findings it belongs to", ArgsUsage: "SHA256",
				Flags: []cli.Flag{stateFlag(), formatFlag()}, Action: func(c *cli.Context) error { return runEvidenceShow(c, e) }}),
			command(&cli.Command{Name: "extract", Usage: "write the content of one item, which is most likely malware", ArgsUsage: "SHA256 -o FILE",
				Description: "FILE must not exist. It gets the mode 0600. Other scanners on this host will find what is in it.",
				Flags:       []cli.Flag{stateFlag(), &cli.PathFlag{Name: "output", Aliases: []string{"o"}, Usage: "`FILE` to write"}},
				Action:      func(c *cli.Context) error { return runEvidenceExtract(c, e) }}),
			command(&cli.Command{Name: "prune", Usage: "remove the oldest items",
				Description: "Without this command, items that are too old are removed when room is needed.\n" +
					"A store that is full of younger items refuses new ones.",
				Flags:  append([]cli.Flag{stateFlag()}, limitFlags()...),
				Action: func(c *cli.Context) error { return runEvidencePrune(c, e) }}),
		},
	})
}

// openEvidence opens the store for reading. It returns nil if there is none.
func openEvidence(c *cli.Context, e *env) (*evidence.Store, error) {
	dir, err := e.stateDirectory(c)
	if err != nil {
		return nil, err
	}
	s, err := evidence.OpenExisting(evidenceDirectory(dir))
	if errors.Is(err, fs.ErrNotExist) {
		e.warn("no evidence in %s", evidenceDirectory(dir))
		return nil, nil
	}
	return s, err
}

var itemColumns = []report.Column[evidence.Item]{
	{Title: "SHA256", Text: func(x evidence.Item) string { return x.SHA256 }},
	{Title: "KIND", Text: func(x evidence.Item) string { return x.Kind }},
	{Title: "SIZE", Text: func(x evidence.Item) string { return strconv.FormatUint(x.Size, 10) }, Right: true},
	{Title: "SEALED", Text: func(x evidence.Item) string { return strconv.FormatInt(x.Sealed, 10) }, Right: true},
	{Title: "STORED", Text: func(x evidence.Item) string { return clock(&x.Stored) }},
	{Title: "DOMAIN", Text: func(x evidence.Item) string { return x.Domain }},
	{Title: "IMAGE", Text: func(x evidence.Item) string { return x.Image }},
	{Title: "SIGNATURE", Text: func(x evidence.Item) string { return x.Signature }},
}

func runEvidenceList(c *cli.Context, e *env) error {
	f, err := report.ParseFormat(c.String("format"))
	if err != nil {
		return err
	}
	s, err := openEvidence(c, e)
	if err != nil {
		return err
	}
	var items []evidence.Item
	var bad error
	if s != nil {
		items, bad = s.List()
	}
	if err := report.Rows(e.stdout, f, items, itemColumns); err != nil {
		return err
	}
	return bad
}

// evidenceItem finds the item that the only operand names.
func evidenceItem(c *cli.Context, e *env) (*evidence.Store, string, error) {
	if c.NArg() != 1 {
		return nil, "", fmt.Errorf("evidence %s needs the SHA-256 of one item, or its first digits", c.Command.Name)
	}
	s, err := openEvidence(c, e)
	if err != nil {
		return nil, "", err
	}
	if s == nil {
		return nil, "", errIncomplete
	}
	sum, err := s.Find(c.Args().First())
	return s, sum, err
}

// shownItem is an item and the findings it belongs to.
type shownItem struct {
	evidence.Item
	Findings []int64 `json:"findings"`
}

func runEvidenceShow(c *cli.Context, e *env) error {
	f, err := report.ParseFormat(c.String("format"))
	if err != nil {
		return err
	}
	s, sum, err := evidenceItem(c, e)
	if err != nil {
		return err
	}
	it := shownItem{Findings: []int64{}}
	if it.Item, err = s.Show(sum); err != nil {
		return err
	}
	db, err := openHistory(c, e)
	if err != nil {
		return err
	}
	if db != nil {
		defer db.Close()
		found, err := db.Entries(c.Context, history.Filter{SHA256: sum})
		if err != nil {
			return err
		}
		for _, x := range found {
			it.Findings = append(it.Findings, x.ID)
		}
	}
	lines := []history.Line{{Label: "SHA-256", Text: it.SHA256}, {Label: "Kind", Text: it.Kind},
		{Label: "Size", Text: fmt.Sprintf("%d bytes, %d sealed", it.Size, it.Sealed)},
		{Label: "Stored", Text: fmt.Sprintf("first %s, last %s", clock(&it.Stored), clock(&it.Last))}, {Label: "Domain", Text: it.Domain},
		{Label: "Image", Text: it.Image}, {Label: "Signature", Text: it.Signature}, {Label: "Findings", Text: fmt.Sprint(it.Findings)},
		{Label: "File", Text: it.Path}}
	return writeRecord(e, f, &it, lines)
}

func runEvidenceExtract(c *cli.Context, e *env) error {
	out := c.Path("output")
	if out == "" || out == "-" {
		return errors.New("evidence extract needs a file to write, with -o: it is no output for a terminal")
	}
	s, sum, err := evidenceItem(c, e)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("extract evidence: %w", err)
	}
	h, err := s.Extract(sum, f)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		os.Remove(out) // it does not hold what was stored
		return err
	}
	_, err = fmt.Fprintf(e.stdout, "%s: %d bytes, %s of %s\n", escape.Text(out), h.Size, escape.Text(h.Kind), escape.Text(h.Image))
	return err
}

func runEvidencePrune(c *cli.Context, e *env) error {
	_, limits, err := e.limits(c)
	if err == nil {
		err = parseLimits(c, &limits.Age, &limits.Size)
	}
	if err != nil {
		return err
	}
	dir, err := e.stateDirectory(c)
	if err != nil {
		return err
	}
	if s, err := openEvidence(c, e); err != nil || s == nil {
		return err
	}
	s, err := evidence.Open(evidenceDirectory(dir), limits)
	if err != nil {
		return err
	}
	p, err := s.Prune()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(e.stdout, "%d items removed, %d are left with %d bytes\n", p.Items, p.Left, p.Used)
	return err
}
