package harness

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"
)

// VirshQuiet is virsh where it may fail.
func VirshQuiet(t testing.TB, args ...string) {
	_ = command(t, "virsh", append([]string{"-q", "-c", URI}, args...)...).Run()
}

// WaitFor polls for something that the test cannot be told of.
func WaitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	limit := 2 * time.Minute
	if InLab() { // where everything runs some twenty times slower
		limit = 10 * time.Minute
	}
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("%s did not come", what)
}

// PidOf finds the process whose command line has all of some words.
func PidOf(words ...string) int {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
next:
	for _, dir := range dirs {
		line, err := os.ReadFile(dir + "/cmdline")
		if err != nil {
			continue
		}
		for _, w := range words {
			if !bytes.Contains(line, []byte(w)) {
				continue next
			}
		}
		pid, _ := strconv.Atoi(filepath.Base(dir)) // the pattern has numbers only
		return pid
	}
	return 0
}

// URI is the address of the libvirt that the domains run at.
const URI = "qemu:///session"

// OpenDir makes a directory that libvirt's QEMU can use: its user is not the test's
// where that is root.
func OpenDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "vmav-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir
}

// command is a command that a test waits for. One that hangs is asked for its goroutines,
// where it has any, and ended; that is its error.
func command(t testing.TB, name string, args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGQUIT) }
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// Virsh runs virsh, which must succeed, and returns what it says.
func Virsh(t testing.TB, args ...string) string {
	t.Helper()
	out, err := command(t, "virsh", append([]string{"-q", "-c", URI}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("virsh %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// Distribution says how long things took: the least, the most, and how many were below.
func Distribution(d []time.Duration) string {
	slices.Sort(d)
	at := func(share float64) time.Duration { return d[int(share*float64(len(d)-1))].Round(time.Millisecond) }
	return fmt.Sprintf("n %d, min %v, median %v, 90 %% %v, 99 %% %v, max %v", len(d), at(0), at(0.5), at(0.9), at(0.99), at(1))
}

// Top is the top of the source tree. Tests run in their package's directory.
func Top(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == "/" {
			t.Fatal("no go.mod here or above")
		}
	}
}

// Long is the first length of a test, and the second one in make test-long.
func Long(usual, more int) int {
	if os.Getenv("VMAV_TEST_LONG") != "" {
		return more
	}
	return usual
}

// InLab says whether this is the nested lab, where nothing may be skipped: the domains
// are KVM's and the module is there.
func InLab() bool { return os.Getenv("VMAV_LAB") != "" }

// Write puts a file that not everybody may write to into a directory.
func Write(t *testing.T, path, text string, mode os.FileMode) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}
