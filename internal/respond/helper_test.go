package respond

import (
	"context"
	"testing"

	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/scan"
	"vmav.dev/vmav/internal/scan/scantest"
	"vmav.dev/vmav/internal/winstruct"
)

// scanner scans with the built-in profiles, in this process.
func scanner(e scan.Engine) scan.Scanner { return scan.InProcess{Means: scantest.Means(e)} }

// all asks for everything, with what findings were found in.
var all = scan.Request{MinCoverage: scan.DefaultMinCoverage, Content: true}

// respondTo scans a guest and responds.
func respondTo(t testing.TB, s scan.Scanner, target scan.Target, o Options) finding.Scan {
	t.Helper()
	o.Profiles = winstruct.BuiltIn()
	d, err := Scan(context.Background(), s, target, all, o)
	if err != nil {
		t.Fatal(err)
	}
	return d
}
