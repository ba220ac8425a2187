// Package domaintest gives a test a libvirt daemon of its own, which it may kill.
package domaintest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// URI is the address of the daemon.
const URI = "qemu:///session"

// Daemon is a libvirt daemon of one test.
type Daemon struct {
	t   testing.TB
	dir string
}

// Own runs the calling test once more under testdata/own-libvirt.sh and returns nil when
// it is done; there it returns the daemon. So a test begins with
//
//	d := domaintest.Own(t)
//	if d == nil {
//		return
//	}
func Own(t *testing.T) *Daemon {
	t.Helper()
	if dir := os.Getenv("VMAV_OWN_LIBVIRT"); dir != "" {
		return &Daemon{t, dir}
	}
	_, here, _, _ := runtime.Caller(0)
	script := filepath.Join(filepath.Dir(here), "../../../testdata/own-libvirt.sh")
	if !filepath.IsAbs(script) { // built with -trimpath; the test runs in its package's directory
		for script = "testdata/own-libvirt.sh"; len(script) < 256; script = "../" + script {
			if _, err := os.Stat(script); err == nil {
				break
			}
		}
	}
	limit := "0"
	if end, ok := t.Deadline(); ok { // so that who hangs says where
		limit = max(time.Until(end)-time.Minute, time.Minute).String()
	}
	cmd := exec.Command(script, os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v", "-test.timeout", limit)
	cmd.WaitDelay = 30 * time.Second // of what is left behind with our end of the pipe
	out, err := cmd.CombinedOutput()
	text := string(out)
	if err != nil || !strings.Contains(text, "--- PASS: "+t.Name()) {
		t.Fatalf("with a libvirt of its own: %v\n%s", err, text)
	}
	t.Log(text)
	return nil
}

// PID is the daemon's process.
func (d *Daemon) PID() int {
	d.t.Helper()
	text, err := os.ReadFile(filepath.Join(d.dir, "pid"))
	if err != nil {
		d.t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		d.t.Fatal(err)
	}
	return pid
}

// Hooks is the directory of the daemon's hook scripts.
func (d *Daemon) Hooks() string { return filepath.Join(d.dir, "hooks") }

// Kill ends the daemon as a crash would, and returns when it is gone.
func (d *Daemon) Kill() {
	d.t.Helper()
	pid := d.PID()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		d.t.Fatal(err)
	}
	for range 500 {
		if err := syscall.Kill(pid, 0); errors.Is(err, syscall.ESRCH) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	d.t.Fatalf("libvirtd %d does not end", pid)
}

// Start starts the daemon after Kill and returns when it answers.
func (d *Daemon) Start() {
	d.t.Helper()
	if out, err := exec.Command(filepath.Join(d.dir, "start")).CombinedOutput(); err != nil {
		d.t.Fatalf("start libvirtd: %v\n%s", err, out)
	}
	for range 300 {
		if exec.Command("virsh", "-q", "-c", URI, "list").Run() == nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	d.t.Fatal("libvirtd does not answer")
}

// Virsh runs a command of virsh, which must succeed.
func (d *Daemon) Virsh(args ...string) string {
	d.t.Helper()
	out, err := exec.Command("virsh", append([]string{"-q", "-c", URI}, args...)...).CombinedOutput()
	if err != nil {
		d.t.Fatalf("virsh %v: %v\n%s", args, err, out)
	}
	return string(out)
}
