package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"vmav.dev/vmav/internal/clam"
	"vmav.dev/vmav/internal/config"
	"vmav.dev/vmav/internal/scan"
)

// scanningFlags returns the flags that say how guests are scanned.
func scanningFlags() []cli.Flag {
	return []cli.Flag{
		&cli.IntFlag{Name: "parallel", Aliases: []string{"P"}, Value: scan.DefaultJobs, Usage: "scan `N` images of a domain at once"},
		&cli.Float64Flag{Name: "min-coverage", Value: scan.DefaultMinCoverage, Usage: "`SHARE` of a file that must be in memory for it to be called clean"},
		&cli.StringSliceFlag{Name: "database", Aliases: []string{"d"},
			Usage: "scan with a private clamd and the signatures in `FILE` or directory; can be repeated"},
		&cli.StringFlag{Name: "clamd", Usage: "`SOCKET` of clamd; without it " + clam.DefaultSocket},
		noSandboxFlag(),
		cacheFlag(),
		&cli.BoolFlag{Name: "evidence", Usage: "keep sealed evidence of every finding, whatever the policy says"},
	}
}

// parseScanning reads scanningFlags into a request.
func parseScanning(c *cli.Context) (scan.Request, error) {
	req := scan.Request{Jobs: c.Int("parallel"), MinCoverage: c.Float64("min-coverage")}
	if req.Jobs < 1 || req.Jobs > 64 {
		return req, fmt.Errorf("%d images at once: 1 to 64 are possible", req.Jobs)
	}
	if req.MinCoverage < 0 || req.MinCoverage > 1 {
		return req, fmt.Errorf("a coverage of %v: it is a share between 0 and 1", req.MinCoverage)
	}
	return req, nil
}

// engineOptions returns the options of the engine that flags and settings name.
func engineOptions(c *cli.Context, s *config.Config) clam.Options {
	o := clam.Options{Socket: s.Clamd.Socket, Databases: s.Clamd.Databases}
	if c.IsSet("clamd") {
		o = clam.Options{Socket: c.String("clamd")}
	}
	if c.IsSet("database") {
		o.Databases = c.StringSlice("database")
	}
	return o
}
