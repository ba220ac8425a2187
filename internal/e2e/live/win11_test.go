package live

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vmav.dev/vmav/internal/e2e/harness"
)

// A guest of Windows 11 24H2 that runs is listed as it says itself, with no more than the layout
// of its build and with the profile of its kernel, live and from a dump, and is scanned. Pages
// that are in their files alone, whose entries are plain pointers at times, count as unread.
func TestARunningWindows11(t *testing.T) {
	t.Setenv("XDG_DATA_HOME", t.TempDir()) // where profiles are imported to
	profile := filepath.Join(t.TempDir(), "profile.json")
	g := harness.Start(t, "10.0.26100", "--profile", profile)
	g.Say("pause", "CHURN 0")
	g.Say("freeze", "FROZEN 1")
	want := g.Truth()
	core := filepath.Join(harness.OpenDir(t), "guest.core")
	harness.Virsh(t, "dump", "--memory-only", "--live", g.Name, core)
	if err := os.Chmod(core, 0o644); err != nil {
		t.Fatal(err)
	}
	listed := func(profile string) {
		t.Helper()
		out, errs, status := harness.Vmav(t, "list", "-c", harness.URI, "--format", "json")
		var rows []struct{ Name, Build, Windows, Profile string }
		if err := json.Unmarshal([]byte(out), &rows); err != nil || status != 0 {
			t.Fatalf("list: status %d, %v\n%s", status, err, errs)
		}
		found := false
		for _, r := range rows {
			if r.Name == g.Name {
				found = true
				if r.Build != "10.0.26100" || r.Windows != "Windows 11 24H2" || r.Profile != profile {
					t.Errorf("list: %+v, want profile %s", r, profile)
				}
			}
		}
		if out, _, _ := harness.Vmav(t, "list", "-c", harness.URI); !found || !strings.Contains(out, "Windows 11 24H2 (10.0.26100)") {
			t.Errorf("list:\n%s", out)
		}
	}
	// Programs of the guest trim themselves, with their loader lists. Without MiState pages that
	// Windows trimmed count as not in memory, so that modules and scans are compared with the
	// profile only.
	for _, target := range [][]string{{g.Name, "-c", harness.URI}, {"-a", core}} {
		out, errs, status := harness.Vmav(t, append([]string{"ps", "--format", "json"}, target...)...)
		var procs []harness.Listed
		if err := json.Unmarshal([]byte(out), &procs); err != nil || status != 0 || len(procs) != len(want.Processes) ||
			!strings.Contains(errs, "inferred from Windows 10.0.26100.0") {
			t.Fatalf("ps: status %d, %v, %d processes, want %d\n%s", status, err, len(procs), len(want.Processes), errs)
		}
		for _, w := range want.Processes {
			i := slices.IndexFunc(procs, func(p harness.Listed) bool { return p.PID == w.PID })
			if i < 0 || procs[i].Name != w.Name || procs[i].Path != w.Path || procs[i].Session != w.Session || procs[i].PPID != w.PPID ||
				uint64(procs[i].EPROCESS) != w.EPROCESS || uint64(procs[i].DTB) != w.DTB || (procs[i].Exited == nil) != (w.Exited == nil) {
				t.Errorf("ps: %+v is not listed so", w)
			}
		}
	}
	listed("inferred")
	if out, errs, status := harness.Vmav(t, "profile", "import", profile); status != 0 {
		t.Fatalf("profile import: status %d, %s%s", status, out, errs)
	}
	harness.Compare(t, want, g.Name, "-c", harness.URI)
	harness.Compare(t, want, "-a", core)
	listed("ok")

	g.Say("thaw", "FROZEN 0")
	scanFindsTheMalware(t, g)
	for _, p := range want.Processes {
		if p.Name != "notepad.exe" || p.Exited != nil {
			continue
		}
		g.Say(fmt.Sprintf("evict %d", p.PID), "EVICTED ")
		var got scanResult
		harness.Decode(t, &got, 2, "scan", "-c", harness.URI, g.Name, "--pid", fmt.Sprint(p.PID), "-d", harness.Database(t))
		if len(got.Domains) != 1 || len(got.Domains[0].Findings) != 0 || len(got.Domains[0].Errors) == 0 ||
			got.Domains[0].Errors[0].What != fmt.Sprintf("process %d (notepad.exe), image notepad.exe", p.PID) ||
			!strings.HasPrefix(got.Domains[0].Errors[0].Error, "0 % of it is in memory") {
			t.Errorf("scan of a process without pages: %+v", got)
		}
	}
}
