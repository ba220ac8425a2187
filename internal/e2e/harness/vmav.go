package harness

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Bin is the path of a program that make build made.
func Bin(t testing.TB, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(Top(t), "bin", name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: run make build first", err)
	}
	return path
}

// Vmav runs the program and returns what it wrote and its exit status.
func Vmav(t testing.TB, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	env := os.Environ()
	if !InLab() {
		env = append(env, "VMAV_SOURCE=qemu") // these guests run without KVM
	}
	return Run(t, env, args...)
}

// Run runs the program in an environment.
func Run(t testing.TB, env []string, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	cmd := command(t, Bin(t, "vmav"), args...)
	cmd.Env = env
	var out, errb bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errb
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("vmav %s: %v\n%s", strings.Join(args, " "), err, &errb)
	}
	for _, e := range scanErrors(out.Bytes()) {
		t.Logf("vmav %s: %s: %s", strings.Join(args, " "), e.What, e.Error)
	}
	return out.String(), errb.String(), cmd.ProcessState.ExitCode()
}

// scanError is what a scan says of something that it could not read.
type scanError struct{ What, Error string }

// scanErrors is what a scan's JSON says could not be read, which a test that fails says
// before all of the JSON. It is empty for other output.
func scanErrors(text []byte) (all []scanError) {
	var out struct {
		Domains []struct{ Errors []scanError }
	}
	if json.Unmarshal(text, &out) != nil {
		return nil
	}
	for _, d := range out.Domains {
		all = append(all, d.Errors...)
	}
	return all
}

// Decode runs vmav and reads its JSON.
func Decode(t testing.TB, into any, want int, args ...string) {
	t.Helper()
	out, errs, status := Vmav(t, append(args, "--format", "json")...)
	if status != want || errs != "" {
		t.Errorf("vmav %v: status %d, want %d; stderr %q", args, status, want, errs)
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		t.Fatalf("vmav %v: %v in %q", args, err, out)
	}
}

// Database writes a signature for the guest's malware.exe, and one for what its
// packed.exe unpacks when it runs.
func Database(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "test.ndb")
	if err := os.WriteFile(path, []byte(fmt.Sprintf("Vmav.Test.Malware:1:*:%x\nVmav.Test.Unpacked:0:*:%x\n", "VMAV-TEST-MALWARE", "VMAV_TEST_UNPACKED")),
		0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// StateVariable names the directory of history and evidence.
const StateVariable = "VMAV_STATE_DIRECTORY"

// OwnState gives a package's tests a directory for history and evidence, for the host's is
// not theirs. They remove it at their end.
func OwnState() (remove func(), err error) {
	dir, err := os.MkdirTemp("", "vmav-e2e-state-")
	if err == nil {
		err = os.Setenv(StateVariable, dir)
	}
	return func() { os.RemoveAll(dir) }, err
}
