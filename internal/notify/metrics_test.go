package notify

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"vmav.dev/vmav/internal/config"
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/verdict"
)

func readProm(t *testing.T, dir string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, MetricsFile))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestMetrics(t *testing.T) {
	dir := t.TempDir()
	m, err := openMetrics(dir)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1_700_000_000, 0)
	d := scan(found("r", true), found("r", true))
	d.Timing.Total = 1.5
	d.Kills = []*finding.Kill{{Outcome: finding.Outcome{Code: finding.OutcomeKilled}}}
	d.Actions = []*finding.Act{{Action: verdict.Suspend, Outcome: finding.Outcome{Code: finding.OutcomeSuspended}}}
	odd := scan()
	odd.Name, odd.Status, odd.Errors = "a\"b\\c\nd}", finding.StatusIncomplete, make([]finding.Unread, 3)
	for _, d := range []*finding.Scan{d, d, odd, {Name: "linux", Status: finding.StatusSkipped}} {
		if err := m.add(d, true, now); err != nil {
			t.Fatal(err)
		}
	}
	want := `# HELP vmav_actions_total Processes and domains that something was to be done to, by what and what came of it.
# TYPE vmav_actions_total counter
vmav_actions_total{action="kill",outcome="killed"} 2
vmav_actions_total{action="suspend",outcome="suspended"} 2
# HELP vmav_findings_total Findings, by domain and verdict.
# TYPE vmav_findings_total counter
vmav_findings_total{domain="a\"b\\c\\x0ad}",verdict="hold"} 0
vmav_findings_total{domain="a\"b\\c\\x0ad}",verdict="kill"} 0
vmav_findings_total{domain="a\"b\\c\\x0ad}",verdict="report"} 0
vmav_findings_total{domain="a\"b\\c\\x0ad}",verdict="suspend"} 0
vmav_findings_total{domain="win10",verdict="hold"} 0
vmav_findings_total{domain="win10",verdict="kill"} 4
vmav_findings_total{domain="win10",verdict="report"} 0
vmav_findings_total{domain="win10",verdict="suspend"} 0
# HELP vmav_sweep_complete 1 where the domain's last sweep read all of it.
# TYPE vmav_sweep_complete gauge
vmav_sweep_complete{domain="a\"b\\c\\x0ad}"} 0
vmav_sweep_complete{domain="win10"} 1
# HELP vmav_sweep_errors What the domain's last sweep could not read.
# TYPE vmav_sweep_errors gauge
vmav_sweep_errors{domain="a\"b\\c\\x0ad}"} 3
vmav_sweep_errors{domain="win10"} 0
# HELP vmav_sweep_findings Findings of the domain's last sweep.
# TYPE vmav_sweep_findings gauge
vmav_sweep_findings{domain="a\"b\\c\\x0ad}"} 0
vmav_sweep_findings{domain="win10"} 2
# HELP vmav_sweep_images Images that the domain's last sweep looked at.
# TYPE vmav_sweep_images gauge
vmav_sweep_images{domain="a\"b\\c\\x0ad}"} 12
vmav_sweep_images{domain="win10"} 12
# HELP vmav_sweep_seconds How long the domain's last sweep took.
# TYPE vmav_sweep_seconds gauge
vmav_sweep_seconds{domain="a\"b\\c\\x0ad}"} 0
vmav_sweep_seconds{domain="win10"} 1.5
# HELP vmav_sweep_timestamp_seconds When the domain's last sweep ended.
# TYPE vmav_sweep_timestamp_seconds gauge
vmav_sweep_timestamp_seconds{domain="a\"b\\c\\x0ad}"} 1.7e+09
vmav_sweep_timestamp_seconds{domain="win10"} 1.7e+09
# HELP vmav_sweeps_total Sweeps of domains, by how they ended.
# TYPE vmav_sweeps_total counter
vmav_sweeps_total{status="incomplete"} 1
vmav_sweeps_total{status="scanned"} 2
vmav_sweeps_total{status="skipped"} 1
`
	if got := readProm(t, dir); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	// A domain that is gone for a month is told of no more.
	if err := m.add(d, true, now.Add(metricsAfter)); err != nil {
		t.Fatal(err)
	}
	if got := readProm(t, dir); strings.Contains(got, `a\"b`) || !strings.Contains(got, `vmav_findings_total{domain="win10",verdict="kill"} 2`) ||
		!strings.Contains(got, `status="scanned"} 3`) {
		t.Errorf("got\n%s", got)
	}
}

// What is found in new processes is counted, and is no sweep of the domain.
func TestMetricsOfWhatIsNew(t *testing.T) {
	dir := t.TempDir()
	n, err := Open(config.Report{Metrics: dir}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	n.Domain(scan(found("r", true)), false)
	before := readProm(t, dir)
	d := scan(found("r", true), found("r", true))
	d.Images, d.Status = 1, finding.StatusIncomplete
	d.Kills = []*finding.Kill{{Outcome: finding.Outcome{Code: finding.OutcomeKilled}}}
	n.Fresh(d, false)
	want := strings.Replace(before, `verdict="kill"} 1`, `verdict="kill"} 3`, 1)
	got := readProm(t, dir)
	_, want, _ = strings.Cut(want, "# HELP vmav_findings_total")
	actions, got, _ := strings.Cut(got, "# HELP vmav_findings_total")
	if got != want || !strings.HasSuffix(actions, "\nvmav_actions_total{action=\"kill\",outcome=\"killed\"} 1\n") {
		t.Errorf("got\n%s%s\nwant\n%s", actions, got, want)
	}
}

// Many that count at once lose nothing, and a reader sees whole files only.
func TestMetricsOfSeveralAtOnce(t *testing.T) {
	dir := t.TempDir()
	done := make(chan struct{})
	var readers, writers sync.WaitGroup
	readers.Add(1)
	go func() {
		defer readers.Done()
		for {
			select {
			case <-done:
				return
			default:
			}
			text, err := os.ReadFile(filepath.Join(dir, MetricsFile))
			if err == nil && !strings.Contains(string(text), "\nvmav_sweeps_total{") {
				t.Errorf("half a file: %q", text)
				return
			}
		}
	}()
	for range 8 {
		writers.Add(1)
		go func() {
			defer writers.Done()
			n, err := Open(config.Report{Metrics: dir}, Options{})
			if err != nil {
				t.Error(err)
				return
			}
			for range 25 {
				n.count(scan(), true)
			}
		}()
	}
	writers.Wait()
	close(done)
	readers.Wait()
	if got := readProm(t, dir); !strings.Contains(got, fmt.Sprintf(`vmav_sweeps_total{status="scanned"} %d`, 8*25)) {
		t.Errorf("got\n%s", got)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 1 {
		t.Errorf("%v left in the directory, %v", left, err)
	}
}

// What somebody else has put there is no reason to fail, nor is it kept.
func TestMetricsOverGarbage(t *testing.T) {
	dir := t.TempDir()
	for _, text := range []string{"\x00\xff\n \n#\nvmav_sweeps_total\nother 5\nvmav_sweeps_total{status=\"scanned\"} x\n", strings.Repeat("x", 1<<20),
		strings.Repeat("vmav_sweeps_total 1\n", maxMetrics/20+1)} {
		if err := os.WriteFile(filepath.Join(dir, MetricsFile), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		m := &metrics{dir}
		if err := m.add(scan(), true, time.Unix(5, 0)); err != nil {
			t.Error(err)
		}
		if got := readProm(t, dir); !strings.Contains(got, "vmav_sweeps_total{status=\"scanned\"} 1\n") || strings.Contains(got, "other") {
			t.Errorf("got\n%s", got)
		}
	}
}
