package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmav.dev/vmav/internal/finding"
)

const uri = "qemu:///session"

// bin is the path of a program that make build made.
func bin(t testing.TB, name string) string {
	t.Helper()
	path, err := filepath.Abs("../../bin/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: run make build first", err)
	}
	return path
}

// open makes a directory that libvirt's QEMU can use: its user is not the test's
// where that is root.
func openDir(t testing.TB) string {
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

func virsh(t testing.TB, args ...string) string {
	t.Helper()
	out, err := command(t, "virsh", append([]string{"-q", "-c", uri}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("virsh %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// guest is a test guest that runs as a domain.
type guest struct {
	t    testing.TB
	name string
	conn net.Conn
	sock string      // of the console
	in   chan string // lines of the console, closed behind the last
	said []string    // lines that tell of processes and programs
}

// start boots a test guest and waits for its first heartbeat. It ends with the test.
func start(t testing.TB, build string, more ...string) *guest {
	t.Helper()
	dir := openDir(t)
	g := &guest{t: t, name: fmt.Sprintf("vmav-test-%s-%d-%d", build, os.Getpid(), time.Now().UnixNano()%1e6)}
	socket := filepath.Join(dir, "console")
	args := append([]string{"domain", "--build", build, "--name", g.name, "--kernel", filepath.Join(dir, "guest.elf"), "--console-socket", socket}, more...)
	if inLab() {
		args = append(args, "--type", "kvm")
	}
	xml, err := exec.Command(bin(t, "ntguest"), args...).Output()
	if err != nil {
		t.Fatalf("ntguest %v: %v", args, err)
	}
	file := filepath.Join(dir, "domain.xml")
	if err := os.WriteFile(file, xml, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { virshQuiet(t, "destroy", g.name) })
	g.sock = socket
	virsh(t, "create", file)
	g.connect()
	if g.boots() {
		return g
	}
	where, _ := command(t, "virsh", "-c", uri, "qemu-monitor-command", g.name, "--hmp", "info registers -a").Output()
	if !inLab() {
		t.Fatalf("the guest does not boot. Its registers:\n%s", where)
	}
	// The emulation below the lab loses an interrupt now and then (docs/MODULE.md).
	t.Logf("the guest stands still in its boot, and is started once more. Its registers were:\n%s", where)
	virsh(t, "destroy", g.name)
	virsh(t, "create", file)
	g.connect()
	g.expect("HB ")
	return g
}

// boots waits for the first heartbeat. False means that it does not come.
func (g *guest) boots() bool {
	for late := time.After(3 * time.Minute); ; {
		select {
		case line, ok := <-g.in:
			if beats := strings.HasPrefix(line, "HB "); beats || !ok {
				return beats
			}
		case <-late:
			return false
		}
	}
}

// connect connects to the console, for the first time or to that of another QEMU. It is
// read all the time: a QEMU that is saved while its console takes no more says nothing
// when it is restored.
func (g *guest) connect() {
	g.t.Helper()
	var err error
	if g.conn, err = net.Dial("unix", g.sock); err != nil {
		g.t.Fatal(err)
	}
	conn, in := g.conn, make(chan string, 1<<18)
	g.t.Cleanup(func() { conn.Close() })
	g.in = in
	go func() {
		defer close(in)
		lines := bufio.NewScanner(conn)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			in <- strings.TrimRight(lines.Text(), "\r")
		}
	}()
}

// line is the next line of the console. Its end, or minutes of silence, fail the test.
func (g *guest) line(want string) string {
	g.t.Helper()
	select {
	case line, ok := <-g.in:
		if !ok {
			g.t.Fatalf("the guest's console ended before %q", want)
		}
		for _, kind := range []string{"EXIT ", "EXCEPTION ", "MSG "} {
			if strings.HasPrefix(line, kind) {
				g.said = append(g.said, line)
			}
		}
		return line
	case <-time.After(3 * time.Minute):
		g.t.Fatalf("the guest is silent where it should say %q", want)
	}
	return ""
}

// expect reads the guest's lines up to one that starts with a prefix. A guest that lives and
// does not come to say it fails the test, too.
func (g *guest) expect(prefix string) string {
	g.t.Helper()
	limit, other := 5*time.Minute, ""
	if inLab() {
		limit = 20 * time.Minute
	}
	for end := time.Now().Add(limit); time.Now().Before(end); {
		line := g.line(prefix)
		if strings.HasPrefix(line, "BUGCHECK") {
			g.t.Fatalf("the guest says %q", line)
		}
		if strings.HasPrefix(line, prefix) {
			return line
		}
		if !strings.HasPrefix(line, "HB ") {
			other = line
		}
	}
	g.t.Fatalf("the guest lives, and does not say %q; what it said last was %q", prefix, other)
	return ""
}

// alive waits for a heartbeat that comes after all that was said until now.
func (g *guest) alive() {
	g.t.Helper()
	for range len(g.in) {
		g.line("HB ")
	}
	g.expect("HB ")
}

func (g *guest) say(command, answer string) string {
	g.t.Helper()
	if _, err := fmt.Fprintln(g.conn, command); err != nil {
		g.t.Fatal(err)
	}
	return g.expect(answer)
}

// truth is what is compared of the guest's own account.
type truth struct {
	Processes []process
	Drivers   []module
}

type process struct {
	PID      uint64
	PPID     uint64
	Name     string
	Path     string
	Session  int
	Created  string
	Exited   *string
	EPROCESS uint64
	DTB      uint64
	UserDTB  uint64 `json:"user_dtb"`
	PEB      uint64
	Threads  int
	Modules  []module
}

type module struct {
	PID  uint64 // in vmav's lists
	Name string
	Path string
	Base number
	Size uint64
}

// number is an address: a number in the guest's truth, text in vmav's lists.
type number uint64

func (n *number) UnmarshalJSON(text []byte) error {
	_, err := fmt.Sscan(strings.Trim(string(text), `"`), (*uint64)(n))
	return err
}

func (g *guest) truth() (out truth) {
	g.t.Helper()
	g.say("truth", "TRUTH-BEGIN")
	var doc bytes.Buffer
	for line := ""; line != "TRUTH-END"; line = g.line("TRUTH-END") {
		doc.WriteString(line)
	}
	if err := json.Unmarshal(doc.Bytes(), &out); err != nil {
		g.t.Fatalf("the truth is no JSON: %v", err)
	}
	return out
}

// vmav runs the program and returns what it wrote and its exit status.
func vmav(t testing.TB, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	env := os.Environ()
	if !inLab() {
		env = append(env, "VMAV_SOURCE=qemu") // these guests run without KVM
	}
	return run(t, env, args...)
}

// run runs the program in an environment.
func run(t testing.TB, env []string, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	cmd := command(t, bin(t, "vmav"), args...)
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

// scanErrors is what a scan's JSON says could not be read, which a test that fails says
// before all of the JSON. It is empty for other output.
func scanErrors(text []byte) (all []finding.Unread) {
	var out struct {
		Domains []struct{ Errors []finding.Unread }
	}
	if json.Unmarshal(text, &out) != nil {
		return nil
	}
	for _, d := range out.Domains {
		all = append(all, d.Errors...)
	}
	return all
}

// decode runs vmav and reads its JSON.
func decode(t testing.TB, into any, want int, args ...string) {
	t.Helper()
	out, errs, status := vmav(t, append(args, "--format", "json")...)
	if status != want || errs != "" {
		t.Errorf("vmav %v: status %d, want %d; stderr %q", args, status, want, errs)
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		t.Fatalf("vmav %v: %v in %q", args, err, out)
	}
}
