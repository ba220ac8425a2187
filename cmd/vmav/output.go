package main

import (
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"vmav.dev/vmav/internal/escape"
)

// warn writes a line to stderr.
func (e *env) warn(format string, args ...any) {
	fmt.Fprintln(e.stderr, "vmav: "+escape.Text(fmt.Sprintf(format, args...)))
}

func formatFlag() cli.Flag {
	return &cli.StringFlag{Name: "format", Value: "table", Usage: "output `FORMAT`: table, json, jsonl or csv"}
}

// targetFlags returns the flags of a command on one domain or image.
func targetFlags(more ...cli.Flag) []cli.Flag {
	return append(append([]cli.Flag{connectFlag(), sourceFlag(), imageFlag(), formatFlag()}, profileFlags()...), more...)
}

// stamp returns a time as JSON carries it: null for none.
func stamp(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// clock returns a time as tables show it.
func clock(t *time.Time) string {
	if t == nil {
		return "-"
	}
	return t.Format("2006-01-02 15:04:05")
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
