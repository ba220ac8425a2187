package live

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmav.dev/vmav/internal/clam"
	"vmav.dev/vmav/internal/e2e/harness"
)

// savedGuest writes the memory of a test guest to a file.
func savedGuest(t *testing.T) string {
	t.Helper()
	path := filepath.Join(harness.OpenDir(t), "guest.raw")
	if out, err := exec.Command(harness.Bin(t, "ntguest"), "image", "--out", path).CombinedOutput(); err != nil {
		t.Fatalf("ntguest image: %v\n%s", err, out)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// Scans are killed at any moment, two at once: every finding that was printed is in the
// history, its chain holds, and what was found by a scan that did not live to print it is
// there, too.
func TestNoPrintedFindingIsLostWhenScansAreKilled(t *testing.T) {
	image := savedGuest(t)
	state := t.TempDir()
	t.Setenv(harness.StateVariable, state)
	engine, err := clam.Open(context.Background(), clam.Options{Databases: []string{harness.Database(t)}, TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	type scan struct {
		cmd *exec.Cmd
		out bytes.Buffer
	}
	begin := time.Now()
	if _, errs, status := harness.Vmav(t, "scan", "-a", image, "--clamd", engine.Info().Socket); status != 1 {
		t.Fatalf("status %d: %s", status, errs)
	}
	once := time.Since(begin)
	printed, struck := map[int64]bool{}, 0
	for range 12 {
		var scans []*scan
		for range 2 {
			s := &scan{cmd: exec.Command(harness.Bin(t, "vmav"), "scan", "-a", image, "--clamd", engine.Info().Socket, "--evidence", "--format", "jsonl")}
			s.cmd.Stdout = &s.out
			if err := s.cmd.Start(); err != nil {
				t.Fatal(err)
			}
			scans = append(scans, s)
		}
		// From before the history is open to after the end.
		time.Sleep(time.Duration(rand.Float64() * 2 * float64(once)))
		for _, s := range scans {
			_ = s.cmd.Process.Kill()
		}
		for _, s := range scans {
			_ = s.cmd.Wait() // killed, mostly
			if s.cmd.ProcessState.ExitCode() < 0 {
				struck++
			}
			for in := bufio.NewScanner(&s.out); in.Scan(); {
				var f struct{ ID int64 }
				if err := json.Unmarshal(in.Bytes(), &f); err == nil && f.ID != 0 {
					printed[f.ID] = true
				} else {
					t.Errorf("printed %q: %v", in.Text(), err)
				}
			}
		}
		if out, errs, status := harness.Vmav(t, "history", "verify"); status != 0 && !strings.Contains(errs, "no history") {
			t.Fatalf("%s %s", out, errs)
		}
	}
	var all []struct{ ID int64 }
	harness.Decode(t, &all, 0, "history")
	have := map[int64]bool{}
	for _, x := range all {
		have[x.ID] = true
	}
	for id := range printed {
		if !have[id] {
			t.Errorf("finding %d was printed and is lost", id)
		}
	}
	var runs []struct {
		Status   string
		Findings int
	}
	harness.Decode(t, &runs, 0, "history", "--runs")
	cut, cutFound := 0, 0
	for _, r := range runs {
		if r.Status == "unfinished" {
			cut++
			cutFound += r.Findings
		}
	}
	if struck == 0 {
		t.Error("no scan was killed: every strike came too late")
	}
	// What half an item of evidence leaves behind is no item.
	if out, errs, status := harness.Vmav(t, "evidence", "list"); status != 0 {
		t.Errorf("%s %s", out, errs)
	}
	t.Logf("%d scans killed, %d findings printed, %d in all; %d runs cut off with %d findings", struck, len(printed), len(all), cut, cutFound)
}

// An ordinary user's history is in the user's own state directory, which is made for the
// user alone.
func TestAnOrdinaryUsersHistory(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("becoming an ordinary user needs root")
	}
	const nobody = 65534
	dir := harness.OpenDir(t)
	data, err := os.ReadFile(harness.Bin(t, "vmav"))
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "vmav")
	if err := os.WriteFile(program, data, 0o755); err != nil {
		t.Fatal(err)
	}
	db := filepath.Join(dir, "test.ndb")
	if data, err = os.ReadFile(harness.Database(t)); err == nil {
		err = os.WriteFile(db, data, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	as := func(home string, args ...string) (string, int) {
		t.Helper()
		cmd := exec.Command(program, args...)
		cmd.Dir, cmd.Env = dir, []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + home, "TMPDIR=" + dir}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		out, _ := cmd.CombinedOutput()
		return string(out), cmd.ProcessState.ExitCode()
	}
	image := savedGuest(t)
	home := filepath.Join(dir, "home")
	if err := os.Mkdir(home, 0o755); err != nil {
		t.Fatal(err)
	}
	// A home that the user cannot write to: the scan goes on, and says so once.
	if out, status := as(home, "scan", "-a", image, "-d", db); status != 1 || strings.Count(out, "nothing is recorded") != 1 {
		t.Errorf("status %d: %s", status, out)
	}
	if out, status := as(home, "scan", "-a", image, "-d", db, "--evidence"); status != 2 || strings.Contains(out, "FOUND") {
		t.Errorf("evidence that cannot be kept: status %d: %s", status, out)
	}
	if err := os.Chown(home, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	if out, status := as(home, "scan", "-a", image, "-d", db, "--evidence"); status != 1 || strings.Contains(out, "vmav: ") {
		t.Errorf("status %d: %s", status, out)
	}
	for _, path := range []string{".local/state/vmav", ".local/state/vmav/evidence"} {
		if st, err := os.Stat(filepath.Join(home, path)); err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v; want mode 0700", path, st, err)
		}
	}
	if out, status := as(home, "history"); status != 0 || !strings.Contains(out, "Vmav.Test.Malware") {
		t.Errorf("status %d: %s", status, out)
	}
	if out, status := as(home, "history", "verify"); status != 0 {
		t.Errorf("status %d: %s", status, out)
	}
}
