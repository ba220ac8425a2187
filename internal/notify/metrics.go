package notify

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"vmav.dev/vmav/internal/atomicfile"
	"vmav.dev/vmav/internal/escape"
	"vmav.dev/vmav/internal/finding"
	"vmav.dev/vmav/internal/verdict"
)

// MetricsFile is the name of the metrics in the directory of node_exporter's textfile
// collector.
const MetricsFile = "vmav.prom"

// metrics are the figures of sweeps for Prometheus, in its text format. The counts are
// kept in the file itself, so that the sweeps of many processes add up. A process locks
// the directory, adds its counts, and replaces the file.
type metrics struct{ dir string }

// How much of the file is read, and how long a domain stays in it that is no longer
// swept.
const (
	maxMetrics   = 4 << 20 // bytes
	metricsAfter = 30 * 24 * time.Hour
)

// families are all metrics. If a metric has a label for the domain, it is the first.
var families = []struct{ name, kind, help string }{
	{"vmav_actions_total", "counter", "Processes and domains that something was to be done to, by what and what came of it."},
	{"vmav_findings_total", "counter", "Findings, by domain and verdict."},
	{"vmav_sweep_complete", "gauge", "1 where the domain's last sweep read all of it."},
	{"vmav_sweep_errors", "gauge", "What the domain's last sweep could not read."},
	{"vmav_sweep_findings", "gauge", "Findings of the domain's last sweep."},
	{"vmav_sweep_images", "gauge", "Images that the domain's last sweep looked at."},
	{"vmav_sweep_seconds", "gauge", "How long the domain's last sweep took."},
	{"vmav_sweep_timestamp_seconds", "gauge", "When the domain's last sweep ended."},
	{"vmav_sweeps_total", "counter", "Sweeps of domains, by how they ended."},
}

func openMetrics(dir string) (*metrics, error) {
	st, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	if !st.IsDir() {
		return nil, fmt.Errorf("metrics: %s is no directory", dir)
	}
	return &metrics{dir}, nil
}

// add adds a scan to the file, as samples.add does.
func (m *metrics) add(d *finding.Scan, everything bool, now time.Time) error {
	lock, err := os.Open(m.dir)
	if err != nil {
		return err
	}
	defer lock.Close() // releases the lock
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock %s: %w", m.dir, err)
	}
	path := filepath.Join(m.dir, MetricsFile)
	samples, err := readMetrics(path)
	if err != nil {
		return err
	}
	samples.add(d, everything, now)
	return samples.write(path)
}

// samples are values by metric and labels, as they are in the file.
type samples map[string]float64

// readMetrics reads a file that we wrote. It leaves out lines that it does not know:
// somebody else or another version wrote them.
func readMetrics(path string) (samples, error) {
	s := make(samples)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || st.Size() > maxMetrics {
		return s, err
	}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := lines.Text()
		at := strings.LastIndexByte(line, ' ')
		if at < 0 || line[0] == '#' {
			continue
		}
		name, _, _ := strings.Cut(line[:at], "{")
		known := false
		for _, f := range families {
			known = known || f.name == name
		}
		if v, err := strconv.ParseFloat(line[at+1:], 64); err == nil && known {
			s[line[:at]] = v
		}
	}
	return s, nil
}

// sample is a metric with its labels: name, value, name, value, …
func sample(name string, labels ...string) string {
	var b strings.Builder
	for i := 0; i < len(labels); i += 2 {
		// After escape.Text the format needs an escape for these two characters only.
		v := strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(cut(escape.Text(labels[i+1])))
		fmt.Fprintf(&b, `,%s="%s"`, labels[i], v)
	}
	if b.Len() == 0 {
		return name
	}
	return name + "{" + b.String()[1:] + "}"
}

// add adds a sweep of everything, or the scan of new processes. The findings and actions
// of both are counted. The figures of the sweep are those of the last sweep of
// everything.
func (s samples) add(d *finding.Scan, everything bool, now time.Time) {
	s.forget(now)
	if everything {
		s[sample("vmav_sweeps_total", "status", d.Status)]++
	}
	if d.Status == finding.StatusSkipped {
		return // a guest that is not Windows has no figures
	}
	for _, a := range verdict.Actions() { // a counter must begin at 0, else Prometheus misses its first step
		s[sample("vmav_findings_total", "domain", d.Name, "verdict", a)] += 0
	}
	for i := range d.Findings {
		s[sample("vmav_findings_total", "domain", d.Name, "verdict", string(d.Findings[i].Verdict.Action))]++
	}
	for _, k := range d.Kills {
		s[sample("vmav_actions_total", "action", string(verdict.Kill), "outcome", string(k.Code))]++
	}
	for _, a := range d.Actions {
		s[sample("vmav_actions_total", "action", string(a.Action), "outcome", string(a.Code))]++
	}
	if !everything {
		return
	}
	complete := 0.0
	if d.Status == finding.StatusScanned {
		complete = 1
	}
	for name, v := range map[string]float64{"complete": complete, "errors": float64(len(d.Errors)), "findings": float64(len(d.Findings)),
		"images": float64(d.Images), "seconds": d.Timing.Total, "timestamp_seconds": float64(now.Unix())} {
		s[sample("vmav_sweep_"+name, "domain", d.Name)] = v
	}
}

// forget removes domains that have not been swept for metricsAfter.
func (s samples) forget(now time.Time) {
	const last = "vmav_sweep_timestamp_seconds"
	for key, at := range s {
		labels, ok := strings.CutPrefix(key, last+"{")
		if !ok || now.Sub(time.Unix(int64(at), 0)) < metricsAfter {
			continue
		}
		labels = strings.TrimSuffix(labels, "}")
		for other := range s {
			if _, of, _ := strings.Cut(other, "{"); of == labels+"}" || strings.HasPrefix(of, labels+",") {
				delete(s, other)
			}
		}
	}
}

// write writes the samples to the file at path, in the order of families.
func (s samples) write(path string) error {
	var b bytes.Buffer
	keys := slices.Sorted(maps.Keys(s))
	for _, f := range families {
		header := false
		for _, key := range keys {
			if name, _, _ := strings.Cut(key, "{"); name != f.name {
				continue
			}
			if !header {
				fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", f.name, f.help, f.name, f.kind)
				header = true
			}
			fmt.Fprintf(&b, "%s %s\n", key, strconv.FormatFloat(s[key], 'g', -1, 64))
		}
	}
	// Until the file is whole it has a name that the collector ignores.
	return atomicfile.WriteBytes(path, 0o644, b.Bytes())
}
