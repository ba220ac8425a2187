package main

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"vmav.dev/vmav/internal/notify"
)

// notifier opens the notifier for the receivers that the settings name. trigger says who
// asked. The caller calls told.
func (e *env) notifier(c *cli.Context, trigger string) (*notify.Notifier, error) {
	s, err := e.settings(c)
	if err != nil {
		return nil, err
	}
	return notify.Open(s.Report, notify.Options{Trigger: trigger, Default: s.File == ""})
}

// How long the last notifications may take: after a scan, and after an interrupt.
const (
	tellTime        = 60 * time.Second
	interruptedTime = 2 * time.Second
)

// told waits for notifications that are still to be sent, and warns of those that could not
// be.
func (e *env) told(ctx context.Context, n *notify.Notifier) {
	limit := tellTime
	if errors.Is(ctx.Err(), context.Canceled) {
		limit = interruptedTime
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), limit)
	defer cancel()
	if err := n.Close(ctx); err != nil {
		for _, line := range strings.Split(err.Error(), "\n") {
			e.warn("%s", line)
		}
	}
}
