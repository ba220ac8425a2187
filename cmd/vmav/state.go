package main

import (
	"errors"
	"path/filepath"
	"strconv"
	"time"

	"github.com/urfave/cli/v2"

	"vmav.dev/vmav/internal/evidence"
	"vmav.dev/vmav/internal/history"
	"vmav.dev/vmav/internal/tomlfile"
)

// stateFlag overrides the state directory of the settings. Its environment variable is read
// at one level only, like that of sourceFlag.
func stateFlag(env ...string) cli.Flag {
	return &cli.PathFlag{Name: "state-directory", EnvVars: env, Usage: "`DIR` of history and evidence; without it the state_directory of the settings"}
}

// stateDirectory returns the directory in which history and evidence are kept.
func (e *env) stateDirectory(c *cli.Context) (string, error) {
	if dir := text(c, "state-directory"); dir != "" {
		return filepath.Abs(dir)
	}
	s, err := e.settings(c)
	if err != nil {
		return "", err
	}
	return s.StateDirectory, nil
}

// evidenceDirectory returns the directory of the evidence in a state directory.
func evidenceDirectory(state string) string { return filepath.Join(state, "evidence") }

// limits returns what the settings allow history and evidence to grow to.
func (e *env) limits(c *cli.Context) (h history.Limits, v evidence.Limits, err error) {
	s, err := e.settings(c)
	if err != nil {
		return h, v, err
	}
	return history.Limits{Age: s.History.Keep, Size: s.History.MaxSize}, evidence.Limits{Age: s.Evidence.Keep, Size: s.Evidence.MaxSize}, nil
}

// limitFlags returns the flags of the commands that prune.
func limitFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "keep", Usage: "remove what is older than `TIME`, such as 12h or 30d; without it the limit of the settings holds"},
		&cli.StringFlag{Name: "max-size", Usage: "remove the oldest until `SIZE` is left, such as 500M or 2G; without it the limit of the settings holds"},
	}
}

// parseLimits replaces limits of the settings by those of limitFlags.
func parseLimits(c *cli.Context, age *time.Duration, size *int64) (err error) {
	if c.IsSet("keep") {
		if *age, err = tomlfile.ParseDuration(c.String("keep")); err != nil {
			return err
		}
	}
	if c.IsSet("max-size") {
		*size, err = tomlfile.ParseSize(c.String("max-size"))
	}
	return err
}

// parseTime parses a point in time: a date, a date and a time in the local zone, a time as
// in RFC 3339, or how long ago it was.
func parseTime(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	for _, form := range []string{time.DateOnly, "2006-01-02 15:04", time.DateTime, time.RFC3339Nano} {
		if t, err := time.ParseInLocation(form, s, time.Local); err == nil {
			return t, nil
		}
	}
	d, err := tomlfile.ParseDuration(s)
	if err != nil {
		return time.Time{}, errors.New(strconv.Quote(s) + ` is no time: it is such as 2026-03-02, "2026-03-02 10:50", ` +
			`2026-03-02T10:50:00Z, or how long ago: 12h, 30d`)
	}
	return time.Now().Add(-d), nil
}
