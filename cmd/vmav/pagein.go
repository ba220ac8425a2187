package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/urfave/cli/v2"

	"vmav.dev/vmav/internal/domain"
	"vmav.dev/vmav/internal/pagein"
	"vmav.dev/vmav/internal/scan"
)

// pageInFlags returns the flags that say whether and how a guest is asked to read pages in.
func pageInFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "page-in", Usage: "make the guest read in the pages of its mapped files that are not in memory; needs the kvm-memhook module"},
		&cli.IntFlag{Name: "page-in-pages", Value: pagein.DefaultPages, Usage: "at most `N` pages of 4 KiB in one guest"},
		&cli.DurationFlag{Name: "page-in-wait", Value: pagein.DefaultWait, Usage: "leave out a process that does not run within this `TIME`"},
		&cli.DurationFlag{Name: "page-in-time", Value: pagein.DefaultTime, Usage: "at most this `TIME` in one guest"},
	}
}

// parsePageIn reads pageInFlags. It returns nil if no guest is to be asked.
func parsePageIn(c *cli.Context) (*scan.PageIn, error) {
	on := c.Bool("page-in")
	o := scan.PageIn{Pages: c.Int("page-in-pages"), Wait: c.Duration("page-in-wait"), Time: c.Duration("page-in-time")}
	switch {
	case !on && (c.IsSet("page-in-pages") || c.IsSet("page-in-wait") || c.IsSet("page-in-time")):
		return nil, errors.New("--page-in-pages, --page-in-wait and --page-in-time are for --page-in")
	case on && c.Path("image") != "":
		return nil, errors.New("--page-in: nothing runs in a memory image")
	case on && text(c, "source") == string(domain.QEMU):
		return nil, errors.New("--page-in needs the kvm-memhook module: it does not go with --source qemu")
	case o.Pages < 1 || o.Pages > 1<<20:
		return nil, fmt.Errorf("--page-in-pages %d: 1 to %d are possible", o.Pages, 1<<20)
	case o.Wait < time.Millisecond || o.Wait > 10*time.Minute:
		return nil, fmt.Errorf("--page-in-wait %v: 1ms to 10m are possible", o.Wait)
	case o.Time < o.Wait || o.Time > time.Hour:
		return nil, fmt.Errorf("--page-in-time %v: --page-in-wait to 1h are possible", o.Time)
	}
	if !on {
		return nil, nil
	}
	return &o, nil
}
