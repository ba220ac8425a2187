package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/urfave/cli/v2"

	"vmav.dev/vmav/internal/domain"
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/report"
	"vmav.dev/vmav/internal/winstruct"
)

// listRow is a domain in vmav list.
type listRow struct {
	ID      int    `json:"id"` // -1 while it does not run
	Name    string `json:"name"`
	UUID    string `json:"uuid"`
	State   string `json:"state"`
	Build   string `json:"build"`   // "" if no Windows was recognised
	Windows string `json:"windows"` // the name that people know, "" if there is none
	Source  string `json:"source"`  // "" if it does not run
	Profile string `json:"profile"` // "ok", "inferred", "missing", or "" if it is not Windows
	Note    string `json:"note"`    // why it cannot be scanned
}

var listColumns = []report.Column[listRow]{
	{Title: "ID", Text: func(r listRow) string {
		if r.ID < 0 {
			return "-"
		}
		return strconv.Itoa(r.ID)
	}, Right: true},
	{Title: "NAME", Text: func(r listRow) string { return r.Name }},
	{Title: "STATE", Text: func(r listRow) string { return r.State }},
	{Title: "WINDOWS", Text: listRow.windows},
	{Title: "SOURCE", Text: func(r listRow) string { return dash(r.Source) }},
	{Title: "PROFILE", Text: func(r listRow) string { return dash(r.Profile) }},
	{Title: "NOTE", Text: func(r listRow) string { return dash(r.Note) }},
}

// windows is the name of a domain's Windows with its build.
func (r listRow) windows() string {
	if r.Windows == "" {
		return dash(r.Build)
	}
	return fmt.Sprintf("%s (%s)", r.Windows, r.Build)
}

func listCommand(e *env) *cli.Command {
	return command(&cli.Command{
		Name:  "list",
		Usage: "list domains, the Windows in them, and whether it can be read",
		Flags: []cli.Flag{connectFlag(), sourceFlag(), formatFlag(),
			&cli.BoolFlag{Name: "all", Usage: "also domains that do not run"}},
		Action: func(c *cli.Context) error { return runList(c, e) },
	})
}

func runList(c *cli.Context, e *env) error {
	f, err := report.ParseFormat(c.String("format"))
	if err != nil {
		return err
	}
	h, err := connect(c, e)
	if err != nil {
		return err
	}
	defer h.Close()
	doms, err := h.List(c.Bool("all"))
	if err != nil {
		return err
	}
	profiles := winstruct.OpenStore()
	var rows []listRow
	for _, d := range doms {
		row, err := inspect(c.Context, h, d, profiles)
		if err != nil {
			return err
		}
		rows = append(rows, row)
	}
	return report.Rows(e.stdout, f, rows, listColumns)
}

// inspect looks into one domain far enough to say what it runs. What goes wrong becomes a
// note. Only an interruption is an error.
func inspect(ctx context.Context, h *domain.Host, d domain.Domain, profiles winstruct.Finder) (listRow, error) {
	row := listRow{ID: d.ID, Name: d.Name, UUID: d.UUID, State: d.State}
	if !d.Running {
		return row, nil
	}
	t, err := openDomain(ctx, h, d)
	if err != nil {
		row.Note = err.Error()
		return row, ctx.Err()
	}
	defer t.source.Close()
	row.Source = t.source.Info().Kind
	g, err := introspect.Open(ctx, t.source, profiles)
	var missing *winstruct.MissingError
	switch {
	case errors.As(err, &missing):
		row.Build, row.Profile, row.Note = "Windows", "missing", missing.Error()
	case err != nil:
		row.Note = err.Error()
	default:
		k := g.Kernel()
		row.Build, row.Windows, row.Profile = k.Version, k.Release, "ok"
		if k.Inferred != "" {
			row.Profile, row.Note = finding.ProfileInferred,
				fmt.Sprintf("no profile for %s: inferred from %s; vmav profile fetch %s gets it", k.Identity, k.Inferred, k.Identity)
		}
	}
	return row, ctx.Err()
}
