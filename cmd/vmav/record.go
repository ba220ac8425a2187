package main

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/urfave/cli/v2"

	"vmav.dev/vmav/internal/history"
	"vmav.dev/vmav/internal/notify"
	"vmav.dev/vmav/internal/respond"
)

// recordFlags returns the flags of the commands that record what they do.
func recordFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "no-history", Usage: "record nothing in the history"},
		&cli.StringFlag{Name: "trigger", Value: history.TriggerCLI, Hidden: true, Usage: "`WHAT` started this, for the record: cli, hook, watch or timer"},
	}
}

// recordWish is what a command wants of its records besides what its flags say.
type recordWish struct {
	evidence bool             // the policy may ask for evidence
	trigger  string           // "" to use --trigger
	tell     *notify.Notifier // nil for nobody
	dryRun   bool
}

// openRecords opens the history, unless the user does not want it. If it cannot be opened,
// openRecords warns. It fails only if an option or the policy asks for evidence, because a
// record must point to evidence. The caller closes the records.
func openRecords(c *cli.Context, e *env, wish recordWish) (*respond.Records, error) {
	o := respond.RecordOptions{Always: c.Bool("evidence"), Tell: wish.tell, DryRun: wish.dryRun, Warner: e}
	o.Wanted = o.Always || wish.evidence
	if c.Bool("no-history") {
		if o.Always {
			return nil, errors.New("--evidence is kept for findings in the history: it does not go with --no-history")
		}
		return respond.OpenRecords(o)
	}
	trigger := c.String("trigger")
	if !slices.Contains([]string{history.TriggerCLI, history.TriggerHook, history.TriggerWatch, history.TriggerTimer}, trigger) {
		return nil, fmt.Errorf("trigger %q: known are cli, hook, watch and timer", trigger)
	}
	if wish.trigger != "" {
		trigger = wish.trigger
	}
	dir, err := e.stateDirectory(c)
	if err == nil {
		o.Origin, o.Directory, o.Evidence = history.Self(trigger, os.Args), dir, evidenceDirectory(dir)
		o.History, o.Limits, err = e.limits(c)
	}
	var r *respond.Records
	if err == nil {
		r, err = respond.OpenRecords(o)
	}
	if err != nil && !o.Wanted {
		e.warn("%v; nothing is recorded", err)
		o.Directory = ""
		return respond.OpenRecords(o)
	}
	return r, err
}

// Warn implements respond.Warner.
func (e *env) Warn(format string, args ...any) { e.warn(format, args...) }

// Note implements broker.Notes.
func (e *env) Note(text string) { e.warn("%s", text) }
