package lab

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vmav.dev/vmav/internal/e2e/harness"
)

// pidScan is what a scan of one process says.
type pidScan struct {
	PageIns  int `json:"page_ins"`
	Partial  int
	Images   int
	Findings []struct {
		Kind, Signature, Image string
		PID                    uint64
		Fidelity               struct {
			Coverage float64
			Exact    bool
			Missing  uint64
			PagedIn  uint64 `json:"paged_in"`
		}
	}
	Errors []struct{ What, Error string }
}

// scanPID scans one process of a guest.
func scanPID(t *testing.T, g *harness.Guest, db string, pid uint64, more ...string) pidScan {
	t.Helper()
	text, errs, status := harness.Vmav(t, append([]string{"scan", "-c", harness.URI, g.Name, "--database", db, "--pid", fmt.Sprint(pid), "--format", "json"},
		more...)...)
	var out struct{ Domains []pidScan }
	if err := json.Unmarshal([]byte(text), &out); err != nil || len(out.Domains) != 1 {
		t.Fatalf("scan of %d ended with %d: %v: %s %s", pid, status, err, errs, text)
	}
	return out.Domains[0]
}

// dumped are the modules of a process with what was said of them.
type dumped struct {
	Modules []struct {
		Name, SHA256 string
		Coverage     float64
		Exact        bool
	}
}

// dumpPID writes all modules of a process.
func dumpPID(t *testing.T, g *harness.Guest, pid uint64, more ...string) (d dumped, dir string) {
	t.Helper()
	dir = t.TempDir()
	_, errs, status := harness.Vmav(t, append([]string{"dump", "-c", harness.URI, g.Name, fmt.Sprint(pid), "--all", "-o", dir}, more...)...)
	text, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err == nil {
		err = json.Unmarshal(text, &d)
	}
	if err != nil || len(d.Modules) == 0 {
		t.Fatalf("dump of %d ended with %d: %v %s", pid, status, err, errs)
	}
	return d, dir
}

// What the guest has in its files alone comes back on request, and the scan sees the files
// as they were; without the request it says what it did not see. Processes that must be
// left alone, and those that never run, stay as they are.
func TestScanPagesIn(t *testing.T) {
	for _, more := range [][]string{nil, {"--kva-shadow"}} {
		t.Run(strings.Join(append([]string{"10.0.19041"}, more...), " "), func(t *testing.T) {
			g := harness.Start(t, "10.0.19041", more...)
			g.Say("pause", "CHURN 0")
			db := harness.Database(t)
			pageIn := []string{"--page-in", "--page-in-wait", "30s", "--page-in-time", "10m"}

			pid := g.Start("malware.exe")
			a := g.Number("progress", pid)
			harness.WaitFor(t, "progress", func() bool { return g.Number("progress", pid) != a })
			before, _ := dumpPID(t, g, pid)
			for _, m := range before.Modules {
				if m.Coverage != 1 {
					t.Fatalf("%s is not all there to begin with: %v", m.Name, m.Coverage)
				}
			}
			evict := func(pid uint64) {
				t.Helper()
				if line := g.Say(fmt.Sprintf("evict %d", pid), "EVICTED "); line == "EVICTED 0" {
					t.Fatalf("nothing to evict of %d", pid)
				}
			}
			evict(pid)
			s := scanPID(t, g, db, pid)
			if s.PageIns != 0 || s.Partial == 0 && len(s.Errors) == 0 {
				t.Errorf("with pages evicted, nothing asked for: %+v", s)
			}
			t.Logf("evicted: %d of %d images partial, %d too little to call clean", s.Partial, s.Images, len(s.Errors))

			evict(pid) // what ran since brought its pages back
			s = scanPID(t, g, db, pid, pageIn...)
			if s.PageIns == 0 || s.Partial != 0 || len(s.Errors) != 0 {
				t.Errorf("paged in: %+v", s)
			}
			found := 0
			for _, f := range s.Findings {
				if f.PID == pid && f.Signature == "Vmav.Test.Malware" {
					found++
					if f.Fidelity.Coverage != 1 || f.Fidelity.Missing != 0 || f.Fidelity.PagedIn == 0 {
						t.Errorf("found in %+v", f)
					}
					t.Logf("%d pages asked for; %s found in a file of which %d bytes were paged in", s.PageIns, f.Signature, f.Fidelity.PagedIn)
				} else {
					t.Errorf("%+v", f)
				}
			}
			if found != 1 {
				t.Errorf("found %d times", found)
			}
			evict(pid)
			after, dir := dumpPID(t, g, pid, pageIn...)
			for i, m := range after.Modules {
				if m.SHA256 != before.Modules[i].SHA256 || m.Coverage != 1 || m.Exact != before.Modules[i].Exact {
					t.Errorf("%+v, before %+v", m, before.Modules[i])
				}
			}
			if record, err := os.ReadFile(filepath.Join(dir, "malware.exe.json")); err != nil || strings.Contains(string(record), `"paged_in": 0,`) {
				t.Errorf("the record says nothing of pages read in: %v", err)
			}

			// A critical process, and one that waits for ever: their own files stay out.
			critical, waits := g.Start("critical.exe"), g.Start("service.exe")
			for _, p := range []uint64{critical, waits} {
				evict(p)
				if s := scanPID(t, g, db, p, "--page-in", "--page-in-wait", "3s", "--page-in-time", "30s"); s.Partial == 0 && len(s.Errors) == 0 {
					t.Errorf("process %d was asked: %+v", p, s)
				}
			}
			for _, p := range []uint64{pid, critical} {
				a := g.Number("progress", p)
				harness.WaitFor(t, "progress", func() bool { return g.Number("progress", p) != a })
			}
			if c := g.Complaints(); len(c) > 0 {
				t.Errorf("the guest complains: %q", c)
			}
			g.Alive()
		})
	}
}
