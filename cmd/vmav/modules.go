package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/report"
)

// moduleRow is an image in vmav modules and vmav drivers.
type moduleRow struct {
	Domain  string          `json:"domain"`
	PID     *uint64         `json:"pid,omitempty"` // of the process; absent for a driver
	Process string          `json:"process,omitempty"`
	Name    string          `json:"name"`
	Path    string          `json:"path"`
	Base    finding.Address `json:"base"`
	Size    uint64          `json:"size"` // bytes
	Wow64   bool            `json:"wow64"`
	Flags   []string        `json:"flags"`
}

func imageColumns(process bool) []report.Column[moduleRow] {
	var cols []report.Column[moduleRow]
	if process {
		cols = append(cols,
			report.Column[moduleRow]{Title: "PID", Text: func(r moduleRow) string { return strconv.FormatUint(*r.PID, 10) }, Right: true},
			report.Column[moduleRow]{Title: "PROCESS", Text: func(r moduleRow) string { return r.Process }})
	}
	return append(cols,
		report.Column[moduleRow]{Title: "BASE", Text: func(r moduleRow) string { return fmt.Sprintf("0x%016x", uint64(r.Base)) }},
		report.Column[moduleRow]{Title: "SIZE", Text: func(r moduleRow) string { return strconv.FormatUint(r.Size, 10) }, Right: true},
		report.Column[moduleRow]{Title: "NAME", Text: func(r moduleRow) string { return r.Name }},
		report.Column[moduleRow]{Title: "FLAGS", Text: func(r moduleRow) string {
			flags := r.Flags
			if r.Wow64 {
				flags = append([]string{"wow64"}, flags...)
			}
			return dash(strings.Join(flags, ","))
		}},
		report.Column[moduleRow]{Title: "PATH", Text: func(r moduleRow) string { return dash(r.Path) }})
}

func modulesCommand(e *env) *cli.Command {
	return command(&cli.Command{
		Name:         "modules",
		Usage:        "list the images mapped in the processes of a guest",
		ArgsUsage:    "DOMAIN [PID]",
		Flags:        targetFlags(),
		Action:       func(c *cli.Context) error { return look(c, e, func(v *view) error { return runModules(c, e, v) }) },
		BashComplete: completeDomains(e),
	})
}

func runModules(c *cli.Context, e *env, v *view) error {
	procs, problems, err := v.guest.Processes(c.Context)
	if err != nil {
		return err
	}
	all := len(v.rest) == 0
	if !all {
		p, err := findProcess(procs, v.rest[0])
		if err != nil {
			return fmt.Errorf("%s: %w", v.describe(), err)
		}
		procs, problems = []introspect.Process{*p}, nil
	}
	rows := []moduleRow{}
	for i := range procs {
		p := &procs[i]
		mods, more, err := v.guest.Modules(c.Context, p)
		if err != nil {
			return err
		}
		problems = append(problems, more...)
		for _, m := range mods {
			rows = append(rows, moduleRow{Domain: v.domain.Name, PID: &p.PID, Process: p.Name, Name: m.Name, Path: m.Path,
				Base: finding.Address(m.Base), Size: m.Size, Wow64: m.Wow64, Flags: m.Flags})
		}
	}
	if err := report.Rows(e.stdout, v.format, rows, imageColumns(true)); err != nil {
		return err
	}
	if all {
		problems = v.standing(problems)
	}
	return e.warnings(problems)
}

// findProcess returns the process with a PID. If the PID was used twice, it prefers the
// process that has not exited.
func findProcess(procs []introspect.Process, text string) (*introspect.Process, error) {
	pid, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("pid %q is not a number", text)
	}
	var found *introspect.Process
	for i := range procs {
		if procs[i].PID == pid && (found == nil || procs[i].Exited.IsZero()) {
			found = &procs[i]
		}
	}
	if found == nil {
		return nil, fmt.Errorf("no process %d in the guest", pid)
	}
	return found, nil
}

func driversCommand(e *env) *cli.Command {
	return command(&cli.Command{
		Name:         "drivers",
		Usage:        "list the kernel and the drivers of a guest",
		ArgsUsage:    "DOMAIN",
		Flags:        targetFlags(),
		Action:       func(c *cli.Context) error { return look(c, e, func(v *view) error { return runDrivers(c, e, v) }) },
		BashComplete: completeDomains(e),
	})
}

func runDrivers(c *cli.Context, e *env, v *view) error {
	drivers, problems, err := v.guest.Drivers(c.Context)
	if err != nil {
		return err
	}
	rows := []moduleRow{}
	for _, m := range drivers {
		rows = append(rows, moduleRow{Domain: v.domain.Name, Name: m.Name, Path: m.Path, Base: finding.Address(m.Base), Size: m.Size, Flags: m.Flags})
	}
	if err := report.Rows(e.stdout, v.format, rows, imageColumns(false)); err != nil {
		return err
	}
	return e.warnings(problems)
}
