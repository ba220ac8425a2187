package harness

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Guest is a test guest that runs as a domain.
type Guest struct {
	T    testing.TB // the test that it runs for
	Name string     // of the domain
	Sock string     // of the console
	conn net.Conn
	in   chan string // lines of the console, closed behind the last
	said []string    // lines that tell of processes and programs

	started []uint64 // pids of what Start has started
}

// Start boots a test guest and waits for its first heartbeat. It ends with the test.
func Start(t testing.TB, build string, more ...string) *Guest {
	t.Helper()
	dir := OpenDir(t)
	g := &Guest{T: t, Name: fmt.Sprintf("vmav-test-%s-%d-%d", build, os.Getpid(), time.Now().UnixNano()%1e6)}
	socket := filepath.Join(dir, "console")
	args := append([]string{"domain", "--build", build, "--name", g.Name, "--kernel", filepath.Join(dir, "guest.elf"), "--console-socket", socket}, more...)
	if InLab() {
		args = append(args, "--type", "kvm")
	}
	xml, err := exec.Command(Bin(t, "ntguest"), args...).Output()
	if err != nil {
		t.Fatalf("ntguest %v: %v", args, err)
	}
	file := filepath.Join(dir, "domain.xml")
	if err := os.WriteFile(file, xml, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { VirshQuiet(t, "destroy", g.Name) })
	g.Sock = socket
	begin := time.Now()
	Virsh(t, "create", file)
	created := time.Since(begin)
	g.yield()
	g.connect()
	if g.boots() {
		t.Logf("%s was created in %.1f s and alive after %.1f s", g.Name, created.Seconds(), time.Since(begin).Seconds())
		return g
	}
	where, _ := command(t, "virsh", "-c", URI, "qemu-monitor-command", g.Name, "--hmp", "info registers -a").Output()
	if !InLab() {
		t.Fatalf("the guest does not boot. Its registers:\n%s", where)
	}
	// The emulation below the lab loses an interrupt now and then (docs/MODULE.md).
	t.Logf("the guest stands still in its boot, and is started once more. Its registers were:\n%s", where)
	Virsh(t, "destroy", g.Name)
	Virsh(t, "create", file)
	g.yield()
	g.connect()
	g.Expect("HB ")
	return g
}

// destroy ends the guest's domain. A libvirt that has just started may end it at the same
// moment, and then says that there is none.
func (g *Guest) destroy() {
	g.T.Helper()
	out, err := command(g.T, "virsh", "-q", "-c", URI, "destroy", g.Name).CombinedOutput()
	if err == nil {
		return
	}
	WaitFor(g.T, fmt.Sprintf("the end of %s, of which virsh destroy said %q", g.Name, out), func() bool {
		names, err := command(g.T, "virsh", "-q", "-c", URI, "list", "--name").Output()
		return err == nil && !slices.Contains(strings.Fields(string(names)), g.Name)
	})
}

// yield has the guest's processors leave this host's to whoever else wants them. A guest has
// programs that only compute, and what is tested would otherwise wait for these.
func (g *Guest) yield() {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", PidOf("qemu-system", "guest="+g.Name)))
	for _, dir := range threads {
		tid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		name, err := os.ReadFile(dir + "/comm")
		if err == nil && strings.HasPrefix(string(name), "CPU ") {
			_ = syscall.Setpriority(syscall.PRIO_PROCESS, tid, 10) // it may have ended meanwhile
		}
	}
}

// boots waits for the first heartbeat. False means that it does not come.
func (g *Guest) boots() bool {
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
func (g *Guest) connect() {
	g.T.Helper()
	var err error
	if g.conn, err = net.Dial("unix", g.Sock); err != nil {
		g.T.Fatal(err)
	}
	conn, in := g.conn, make(chan string, 1<<18)
	g.T.Cleanup(func() { conn.Close() })
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
func (g *Guest) line(want string) string {
	g.T.Helper()
	select {
	case line, ok := <-g.in:
		if !ok {
			g.T.Fatalf("the guest's console ended before %q", want)
		}
		for _, kind := range []string{"EXIT ", "EXCEPTION ", "MSG "} {
			if strings.HasPrefix(line, kind) {
				g.said = append(g.said, line)
			}
		}
		return line
	case <-time.After(3 * time.Minute):
		g.T.Fatalf("the guest is silent where it should say %q", want)
	}
	return ""
}

// Expect reads the guest's lines up to one that starts with a prefix. A guest that lives and
// does not come to say it fails the test, too.
func (g *Guest) Expect(prefix string) string {
	g.T.Helper()
	limit, other := 5*time.Minute, ""
	if InLab() {
		limit = 20 * time.Minute
	}
	for end := time.Now().Add(limit); time.Now().Before(end); {
		line := g.line(prefix)
		if strings.HasPrefix(line, "BUGCHECK") {
			g.T.Fatalf("the guest says %q", line)
		}
		if strings.HasPrefix(line, prefix) {
			return line
		}
		if !strings.HasPrefix(line, "HB ") {
			other = line
		}
	}
	g.T.Fatalf("the guest lives, and does not say %q; what it said last was %q", prefix, other)
	return ""
}

// Alive waits for a heartbeat that comes after all that was said until now.
func (g *Guest) Alive() {
	g.T.Helper()
	for range len(g.in) {
		g.line("HB ")
	}
	g.Expect("HB ")
}

// Say tells the guest a command and waits for its answer, a line that starts so.
func (g *Guest) Say(command, answer string) string {
	g.T.Helper()
	if _, err := fmt.Fprintln(g.conn, command); err != nil {
		g.T.Fatal(err)
	}
	return g.Expect(answer)
}

// Living are the processes that live, by the guest's own account: pid, name and threads of
// each. In the lab the truth takes a minute, and this a second.
func (g *Guest) Living() (out []string) {
	g.T.Helper()
	if _, err := fmt.Fprintln(g.conn, "list"); err != nil {
		g.T.Fatal(err)
	}
	for end := time.Now().Add(5 * time.Minute); time.Now().Before(end); {
		line := g.line("LISTED")
		if p, ok := strings.CutPrefix(line, "PROCESS "); ok {
			out = append(out, p)
		} else if n, ok := strings.CutPrefix(line, "LISTED "); ok {
			if n != strconv.Itoa(len(out)) || len(out) == 0 {
				g.T.Fatalf("the guest lists %d processes and says that there are %s", len(out), n)
			}
			slices.Sort(out)
			return out
		}
	}
	g.T.Fatalf("the guest has not listed its processes in five minutes; it began with %d", len(out))
	return nil
}

// Truth is the guest's own account.
func (g *Guest) Truth() (out Truth) {
	g.T.Helper()
	g.Say("truth", "TRUTH-BEGIN")
	var doc bytes.Buffer
	for line := ""; line != "TRUTH-END"; line = g.line("TRUTH-END") {
		doc.WriteString(line)
	}
	if err := json.Unmarshal(doc.Bytes(), &out); err != nil {
		g.T.Fatalf("the truth is no JSON: %v", err)
	}
	return out
}

// Start has the guest start a program and returns its pid.
func (g *Guest) Start(name string, more ...string) uint64 {
	g.T.Helper()
	line := g.Say("start "+strings.Join(append([]string{name}, more...), " "), "START ")
	for !strings.HasSuffix(line, " "+name) {
		line = g.Expect("START ")
	}
	pid, err := strconv.ParseUint(strings.Fields(line)[1], 10, 64)
	if err != nil {
		g.T.Fatal(err)
	}
	g.started = append(g.started, pid)
	return pid
}

// Number asks the guest something that it answers with a number behind a pid.
func (g *Guest) Number(command string, pid uint64) uint64 {
	g.T.Helper()
	word := strings.ToUpper(command)
	line := g.Say(fmt.Sprintf("%s %d", command, pid), fmt.Sprintf("%s %d ", word, pid))
	n, err := strconv.ParseUint(strings.Fields(line)[2], 10, 64)
	if err != nil {
		g.T.Fatalf("the guest says %q", line)
	}
	return n
}

// Complaints are what programs of the guest said of what was done to them.
func (g *Guest) Complaints() []string {
	var out []string
	for _, line := range g.said {
		if strings.HasPrefix(line, "EXCEPTION ") || strings.Contains(line, "CONTEXT") || strings.Contains(line, "0xdead") {
			out = append(out, line)
		}
	}
	return out
}
