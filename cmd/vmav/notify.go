package main

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"vmav.dev/vmav/internal/notify"
)

// notifier tells those whom the settings name. trigger says who asked. The caller calls
// told.
func (e *env) notifier(c *cli.Context, trigger string) (*notify.Notifier, error) {
	s, err := e.settings(c)
	if err != nil {
		return nil, err
	}
	return notify.Open(s.Report, notify.Options{Trigger: trigger, Default: s.File == ""})
}

// How long the last of what was found may take to get to those who are told: when all is
// done, and after an interrupt.
const (
	tellTime        = 60 * time.Second
	interruptedTime = 2 * time.Second
)

// told waits for what is still to be told, and warns of what could not be.
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
