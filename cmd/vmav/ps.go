package main

import (
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/report"
)

// processRow is a process in vmav ps.
type processRow struct {
	Domain   string          `json:"domain"`
	PID      uint64          `json:"pid"`
	PPID     uint64          `json:"ppid"`
	Name     string          `json:"name"`
	Path     string          `json:"path"`
	Command  string          `json:"command"`
	Session  int32           `json:"session"` // -1 for none
	Created  *time.Time      `json:"created"`
	Exited   *time.Time      `json:"exited"`
	Threads  uint32          `json:"threads"`
	Wow64    bool            `json:"wow64"`
	DTB      finding.Address `json:"dtb"`
	EPROCESS finding.Address `json:"eprocess"`
	PEB      finding.Address `json:"peb"`
	Sources  []string        `json:"sources"`
	Flags    []string        `json:"flags"`
}

var processColumns = []report.Column[processRow]{
	{Title: "PID", Text: func(r processRow) string { return strconv.FormatUint(r.PID, 10) }, Right: true},
	{Title: "PPID", Text: func(r processRow) string { return strconv.FormatUint(r.PPID, 10) }, Right: true},
	{Title: "NAME", Text: func(r processRow) string { return r.Name }},
	{Title: "SESSION", Text: func(r processRow) string {
		if r.Session < 0 {
			return "-"
		}
		return strconv.Itoa(int(r.Session))
	}, Right: true},
	{Title: "THREADS", Text: func(r processRow) string { return strconv.FormatUint(uint64(r.Threads), 10) }, Right: true},
	{Title: "STARTED (UTC)", Text: func(r processRow) string { return clock(r.Created) }},
	{Title: "FLAGS", Text: func(r processRow) string {
		flags := r.Flags
		if r.Wow64 {
			flags = append([]string{"wow64"}, flags...)
		}
		return dash(strings.Join(flags, ","))
	}},
	{Title: "PATH", Text: func(r processRow) string { return dash(r.Path) }},
}

func psCommand(e *env) *cli.Command {
	return command(&cli.Command{
		Name:         "ps",
		Usage:        "list the processes of a guest, including hidden ones",
		ArgsUsage:    "DOMAIN",
		Flags:        targetFlags(),
		Action:       func(c *cli.Context) error { return look(c, e, func(v *view) error { return runPS(c, e, v) }) },
		BashComplete: completeDomains(e),
	})
}

func runPS(c *cli.Context, e *env, v *view) error {
	procs, problems, err := v.guest.Processes(c.Context)
	if err != nil {
		return err
	}
	rows := make([]processRow, 0, len(procs))
	for i := range procs {
		rows = append(rows, rowOf(v.target, &procs[i]))
	}
	if err := report.Rows(e.stdout, v.format, rows, processColumns); err != nil {
		return err
	}
	return e.warnings(v.standing(problems))
}

func rowOf(t *target, p *introspect.Process) processRow {
	return processRow{Domain: t.domain.Name, PID: p.PID, PPID: p.PPID, Name: p.Name, Path: p.Path, Command: p.CommandLine, Session: p.Session,
		Created: stamp(p.Created), Exited: stamp(p.Exited), Threads: p.Threads, Wow64: p.Wow64, DTB: finding.Address(p.DTB),
		EPROCESS: finding.Address(p.EPROCESS), PEB: finding.Address(p.PEB), Sources: p.Sources, Flags: p.Flags}
}
