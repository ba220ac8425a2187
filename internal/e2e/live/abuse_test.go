package live

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmav.dev/vmav/internal/e2e/harness"
)

// Whatever ends in the middle of a scan, the scan says so by name, its status is not
// clean, and nothing of it stays behind. In make test-long it ends at three moments.
func TestWhatGoesAwayInMidScanIsNamed(t *testing.T) {
	db := harness.Database(t)
	for _, tt := range []struct {
		name   string
		status int
		says   []string                                                           // any of
		strike func(t *testing.T, g *harness.Guest, vmav *os.Process, tmp string) // its directory for temporary files
	}{
		// "not running": it was killed before vmav opened it.
		{"QEMU killed", 2, []string{"guest is gone", "not running"}, func(t *testing.T, g *harness.Guest, _ *os.Process, _ string) {
			if pid := harness.PidOf("qemu-system", "guest="+g.Name); pid == 0 {
				t.Error("no QEMU to kill")
			} else {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
		}},
		{"domain destroyed", 2, []string{"guest is gone", "no such domain", "not running"}, func(t *testing.T, g *harness.Guest, _ *os.Process, _ string) {
			harness.VirshQuiet(t, "destroy", g.Name)
		}},
		{"clamd killed", 2, []string{"clamd is gone", "start a private clamd: it ended at once"},
			func(t *testing.T, _ *harness.Guest, _ *os.Process, tmp string) {
				if pid := harness.PidOf("clamd", "--config-file="+tmp); pid != 0 {
					_ = syscall.Kill(pid, syscall.SIGKILL)
				}
			}},
		{"interrupted", 130, []string{"interrupted", "context canceled"},
			func(t *testing.T, _ *harness.Guest, v *os.Process, _ string) { _ = v.Signal(syscall.SIGINT) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			hit, want := 0, harness.Long(1, 3)
			var g *harness.Guest
			for try := 0; try < 40 && hit < want; try++ {
				if g == nil || !strings.Contains(tt.name, "clamd") && tt.status != 130 {
					g = harness.Start(t, "10.0.19041")
				}
				tmp := t.TempDir()
				cmd := exec.Command(harness.Bin(t, "vmav"), "scan", g.Name, "-c", harness.URI, "-d", db, "-P", "1")
				cmd.Env = append(os.Environ(), "TMPDIR="+tmp, "XDG_RUNTIME_DIR="+tmp)
				var out bytes.Buffer
				cmd.Stdout, cmd.Stderr = &out, &out
				if err := cmd.Start(); err != nil {
					t.Fatal(err)
				}
				// The engine is up when its socket is there; the scan runs from then on.
				harness.WaitFor(t, "the engine", func() bool {
					s, _ := filepath.Glob(tmp + "/vmav-clamd-*/clamd.ctl")
					return len(s) > 0 || cmd.Process.Signal(syscall.Signal(0)) != nil
				})
				time.Sleep(time.Duration(rand.IntN(300)) * time.Millisecond)
				tt.strike(t, g, cmd.Process, tmp)
				_ = cmd.Wait()
				status := cmd.ProcessState.ExitCode()
				if left, _ := filepath.Glob(tmp + "/*"); len(left) != 0 {
					t.Errorf("left behind: %v", left)
				}
				if pid := harness.PidOf("clamd", "--config-file="+tmp); pid != 0 {
					t.Errorf("clamd %d is left behind", pid)
				}
				if status == 1 && strings.Contains(out.String(), "Vmav.Test.Malware") && strings.Contains(out.String(), "1 scanned") {
					continue // it was over before the strike
				}
				if status != tt.status {
					t.Errorf("status %d, want %d\n%s", status, tt.status, out.String())
				}
				named := false
				for _, s := range tt.says {
					named = named || strings.Contains(out.String(), s)
				}
				if !named {
					t.Errorf("none of %q in\n%s", tt.says, out.String())
				}
				hit++
			}
			if hit == 0 {
				t.Error("no strike came in time")
			}
		})
	}
}

func TestFullDiskIsNamed(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	g := harness.Start(t, "10.0.19041")
	small := t.TempDir()
	if err := syscall.Mount("tmpfs", small, "tmpfs", 0, "size=32k"); err != nil {
		t.Fatal(err)
	}
	defer syscall.Unmount(small, 0)
	out, errs, status := harness.Vmav(t, "dump", g.Name, "4", "-c", harness.URI, "-o", small+"/x")
	if status != 2 || !strings.Contains(errs, "its program is not mapped") {
		t.Errorf("dump of System: status %d, %q, %q", status, out, errs)
	}
	var procs []harness.Listed
	harness.Decode(t, &procs, 0, "ps", g.Name, "-c", harness.URI)
	cmd := exec.Command("dd", "if=/dev/zero", "of="+small+"/fill", "bs=1k", "count=64")
	_ = cmd.Run() // it fills the disk and fails
	for _, p := range procs {
		if p.Name != "notepad.exe" {
			continue
		}
		_, errs, status := harness.Vmav(t, "dump", g.Name, fmt.Sprint(p.PID), "-c", harness.URI, "--module", "ntdll.dll", "--raw", "-o", small+"/x")
		if status != 2 || !strings.Contains(errs, "no space left") || !strings.Contains(errs, small+"/x") {
			t.Errorf("dump: status %d, %q", status, errs)
		}
		if left, _ := filepath.Glob(small + "/.*"); len(left) != 0 {
			t.Errorf("left behind: %v", left)
		}
	}
	cmd = exec.Command(harness.Bin(t, "vmav"), "scan", g.Name, "-c", harness.URI, "-d", harness.Database(t))
	cmd.Env = append(os.Environ(), "TMPDIR="+small, "XDG_RUNTIME_DIR="+small)
	text, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 2 || !strings.Contains(string(text), "no space left") {
		t.Errorf("scan: %v, %s", err, text)
	}
	if left, _ := filepath.Glob(small + "/vmav*"); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestErrorsNameWhatIsWrong(t *testing.T) {
	junk := filepath.Join(t.TempDir(), "junk")
	data := make([]byte, 1<<20)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	if err := os.WriteFile(junk, data, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args []string
		says string
	}{
		{[]string{"ps", "no-such-domain", "-c", harness.URI}, "no such domain"},
		{[]string{"ps"}, "needs a domain"},
		{[]string{"ps", "-a", "/no/such/file"}, "/no/such/file"},
		{[]string{"ps", "-a", junk}, "not Windows"},
		{[]string{"ps", "x", "-c", "qemu+unix:///system?socket=/no/such/socket"}, "/no/such/socket"},
		{[]string{"ps", "-c", harness.URI, "x", "--format", "xml"}, `format "xml"`},
		{[]string{"scan", "-c", harness.URI}, "needs domains"},
		{[]string{"scan", "--all", "x", "-c", harness.URI}, "goes with no domain"},
		{[]string{"scan", "--all", "-c", harness.URI, "--action", "kill"}, "kvm-memhook"},
		{[]string{"ps", "test", "-c", "test:///default"}, "only domains of its QEMU driver"},
		{[]string{"profile", "show", "nonsense"}, `no profile "nonsense"`},
		{[]string{"profile", "import", junk}, junk},
		{[]string{"frobnicate"}, "no command"},
		{[]string{"ps", "--frobnicate", "x"}, "frobnicate"},
	} {
		_, errs, status := harness.Vmav(t, tt.args...)
		if status != 2 || !strings.Contains(errs, tt.says) || strings.Contains(errs, "panic") {
			t.Errorf("vmav %v: status %d, %q; want 2 and %q", tt.args, status, errs, tt.says)
		}
	}
}
