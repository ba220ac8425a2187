package live

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmav.dev/vmav/internal/domain/domaintest"
	"vmav.dev/vmav/internal/e2e/harness"
	"vmav.dev/vmav/internal/lock"
)

// scanAll is a vmav scan --all that runs.
type scanAll struct {
	t        testing.TB
	cmd      *exec.Cmd
	out, err bytes.Buffer
}

func startScan(t testing.TB, env []string, more ...string) *scanAll {
	t.Helper()
	s := &scanAll{t: t, cmd: exec.Command(harness.Bin(t, "vmav"), append([]string{"scan", "--all", "--format", "json"}, more...)...)}
	s.cmd.Env, s.cmd.Stdout, s.cmd.Stderr = env, &s.out, &s.err
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.cmd.Process.Kill() })
	return s
}

func (s *scanAll) wait() (status int) {
	_ = s.cmd.Wait()
	return s.cmd.ProcessState.ExitCode()
}

func (s *scanAll) signal(sig syscall.Signal) {
	s.t.Helper()
	if err := s.cmd.Process.Signal(sig); err != nil {
		s.t.Fatal(err)
	}
}

// host is an environment with settings of its own, and its directories.
func host(t *testing.T, more string) (env []string, dir string) {
	t.Helper()
	file := harness.Settings(t, more)
	return append(os.Environ(), "VMAV_CONFIG="+file, "VMAV_SOURCE=qemu"), filepath.Dir(file)
}

// One scan of all domains runs at a time, whoever starts how many.
func TestScansOfAllDomainsExcludeEachOther(t *testing.T) {
	t.Parallel()
	if domaintest.Own(t) == nil {
		return
	}
	harness.Start(t, "10.0.19041")
	env, dir := host(t, "")
	path := filepath.Join(dir, "run", "sweep.lock")
	held := func() bool {
		l, err := lock.Try(path)
		l.Release()
		return err != nil
	}
	first := startScan(t, env)
	harness.WaitFor(t, "the lock", held)
	first.signal(syscall.SIGSTOP)
	if out, errs, status := harness.Run(t, env, "scan", "--all", "-i"); status != 0 || out != "" || errs != "" {
		t.Errorf("a second one: status %d, %q, %q", status, out, errs)
	}
	if out, errs, status := harness.Run(t, env, "scan", "--all"); status != 0 || out != "" || !strings.Contains(errs, "under way") {
		t.Errorf("a second one that is not silent: status %d, %q, %q", status, out, errs)
	}
	if _, errs, status := harness.Run(t, env, "scan", "--all", "--wait", "--deadline", "300ms"); status != 2 || !strings.Contains(errs, "deadline") {
		t.Errorf("one that waits for so long: status %d, %q", status, errs)
	}
	waiting := []*scanAll{startScan(t, env, "--wait"), startScan(t, env, "--wait"), startScan(t, env, "--wait")}
	time.Sleep(500 * time.Millisecond) // until they have asked
	first.signal(syscall.SIGCONT)
	if status := first.wait(); status != 1 {
		t.Errorf("the first: status %d, %s", status, first.err.String())
	}
	merged := 0
	for i, w := range waiting {
		if status := w.wait(); status != 1 {
			t.Errorf("%d of those that waited: status %d, %s", i, status, w.err.String())
		}
		if strings.Contains(w.err.String(), "took this one's place") {
			merged++
		}
	}
	if merged != 2 {
		t.Errorf("%d of 3 that waited were merged, want 2", merged)
	}
	// A crash leaves no lock.
	crashed := startScan(t, env)
	harness.WaitFor(t, "the lock", held)
	crashed.signal(syscall.SIGKILL)
	crashed.wait()
	if _, errs, status := harness.Run(t, env, "scan", "--all", "-i"); status != 1 {
		t.Errorf("after a crash: status %d, %q", status, errs)
	}
}

// What an interrupted scan of all domains has done is not done again.
func TestAnInterruptedScanIsResumed(t *testing.T) {
	t.Parallel()
	if domaintest.Own(t) == nil {
		return
	}
	for _, build := range []string{"10.0.19041", "6.1.7601", "10.0.22000"} {
		harness.Start(t, build)
	}
	env, dir := host(t, "")
	file := filepath.Join(dir, "state", "sweep.checkpoint")
	lines := func() int {
		text, _ := os.ReadFile(file)
		return bytes.Count(text, []byte("\n"))
	}
	first := startScan(t, env, "-P", "1")
	for end := time.Now().Add(time.Minute); lines() < 2 && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	first.signal(syscall.SIGKILL)
	first.wait()
	n := lines() - 1
	if n < 1 || n > 2 {
		t.Fatalf("%d domains were done when it was killed", n)
	}
	resumed := func(args ...string) (count, domains int) {
		t.Helper()
		s := startScan(t, env, args...)
		if status := s.wait(); status != 1 {
			t.Fatalf("scan %v: status %d, %s", args, status, s.err.String())
		}
		var out struct {
			Domains []struct {
				Resumed  bool
				Findings []struct{ PID uint64 }
			}
		}
		if err := json.Unmarshal(s.out.Bytes(), &out); err != nil {
			t.Fatal(err)
		}
		for _, d := range out.Domains {
			if d.Resumed {
				count++
			}
			if len(d.Findings) == 0 {
				t.Errorf("scan %v: a domain without its findings", args)
			}
		}
		return count, len(out.Domains)
	}
	if count, domains := resumed("--resume"); count != n || domains != 3 {
		t.Errorf("%d of %d domains are of the interrupted scan, want %d of 3", count, domains, n)
	}
	if count, _ := resumed("--resume"); count != 0 {
		t.Errorf("%d domains of a scan that had ended", count)
	}
	// A deadline is an interruption, too, and what it leaves out is named.
	out, errs, status := harness.Run(t, env, "scan", "--all", "--deadline", "1ms")
	if status != 2 || !strings.Contains(out+errs, "deadline") {
		t.Errorf("at the deadline: status %d, %q, %q", status, out, errs)
	}
	for _, args := range [][]string{{"scan", "x", "--resume"}, {"scan", "x", "--wait"}, {"scan", "--all", "--deadline", "0s"},
		{"scan", "--all", "--resume", "--pid", "4"}} {
		if _, errs, status := harness.Run(t, env, args...); status != 2 || errs == "" {
			t.Errorf("vmav %v: status %d, %q", args, status, errs)
		}
	}
}

// Where no service runs, the hook's scan stands in for it.
func TestHookScansWhereNoServiceRuns(t *testing.T) {
	t.Parallel()
	d := domaintest.Own(t)
	if d == nil {
		return
	}
	dir := harness.OpenDir(t)
	told, script := filepath.Join(dir, "told"), filepath.Join(dir, "tell")
	if err := os.WriteFile(script, []byte("#!/bin/sh\ncat >>"+told+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	env, hostDir := host(t, "notify = [\""+script+"\"]\n")
	if _, errs, status := harness.Run(t, env, "hook", "install", "--hooks-directory", d.Hooks()); status != 0 {
		t.Fatalf("install: %d, %q", status, errs)
	}
	d.Kill()
	d.Start()
	g := harness.Start(t, "10.0.19041")
	harness.WaitFor(t, "the finding to be told", func() bool {
		text, _ := os.ReadFile(told)
		return strings.Contains(string(text), g.Name) && strings.Contains(string(text), "Vmav.Test.Malware")
	})
	spool := filepath.Join(hostDir, "state", "spool")
	harness.WaitFor(t, "the spool to be empty and the scan to end", func() bool {
		left, err := os.ReadDir(spool)
		return err == nil && len(left) == 0 && harness.PidOf(harness.Bin(t, "vmav"), "hook\x00scan") == 0
	})
	g.Alive()
}
