package ntguest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// guest is a running guest under QEMU's software emulation. Its deadline only ends a
// hang; nothing is concluded from how long anything takes.
type guest struct {
	t       *testing.T
	machine *Machine
	in      io.Writer
	lines   chan string
	seen    []string
	bad     []string // parts of lines that fail the test
}

const hang = 3 * time.Minute

// boot lays a guest out and starts it; it ends with the test. From then on the test runs
// beside others that have a guest: most of what they do is to wait for theirs.
func boot(t *testing.T, opts Options, qemuMachine string, qemuArgs ...string) *guest {
	t.Helper()
	if testing.Short() {
		t.Skip("boots a guest; make test does")
	}
	t.Parallel()
	m, err := Lay(opts)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "guest.elf")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.WriteKernel(f); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	args := []string{"-M", qemuMachine, "-smp", "2", "-m", "512", "-display", "none", "-nic", "none",
		"-no-reboot", "-monitor", "none", "-serial", "stdio", "-kernel", path}
	if opts.LA57 {
		args = append(args, "-cpu", "max")
	}
	// A guest computes all the time, and gives way to those who have something to do.
	cmd := exec.Command("nice", append(append([]string{"-n", "5", "qemu-system-x86_64"}, args...), qemuArgs...)...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	g := &guest{t: t, machine: m, in: in, lines: make(chan string, 4096), bad: []string{"BUGCHECK", "EXCEPTION", "ERROR", "0xdead", "CONTEXT"}}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("the guest's last lines:\n%s", strings.Join(g.seen[max(0, len(g.seen)-30):], "\n"))
		}
	})
	go func() {
		defer close(g.lines)
		s := bufio.NewScanner(out)
		s.Buffer(nil, 1<<20)
		for s.Scan() {
			g.lines <- strings.TrimRight(s.Text(), "\r")
		}
	}()
	return g
}

// next returns the guest's next line. A line that tells of a failure inside fails
// the test.
func (g *guest) next() string {
	g.t.Helper()
	select {
	case line, ok := <-g.lines:
		if !ok {
			g.t.Fatal("QEMU has ended")
		}
		if len(line) > 200 {
			g.seen = append(g.seen, line[:200]+"...")
		} else {
			g.seen = append(g.seen, line)
		}
		for _, bad := range g.bad {
			if strings.Contains(line, bad) {
				g.t.Fatalf("the guest says %q", line)
			}
		}
		return line
	case <-time.After(hang):
		g.t.Fatal("the guest says nothing any more")
		return ""
	}
}

// expect reads until a line matches and returns its groups.
func (g *guest) expect(pattern string) []string {
	g.t.Helper()
	re := regexp.MustCompile(pattern)
	for end := time.Now().Add(hang); time.Now().Before(end); {
		if m := re.FindStringSubmatch(g.next()); m != nil {
			return m
		}
	}
	g.t.Fatalf("no line of the guest matches %q", pattern)
	return nil
}

func (g *guest) send(format string, args ...any) {
	g.t.Helper()
	if _, err := fmt.Fprintf(g.in, format+"\n", args...); err != nil {
		g.t.Fatal(err)
	}
}

// heartbeats reads n of them and returns the last one's number of context switches.
func (g *guest) heartbeats(n int) (switches int) {
	g.t.Helper()
	last := 0
	for range n {
		m := g.expect(`^HB (\d+) \d+ switches=(\d+) `)
		seq, _ := strconv.Atoi(m[1])
		switches, _ = strconv.Atoi(m[2])
		if last != 0 && seq != last+1 {
			g.t.Fatalf("heartbeat %d follows %d", seq, last)
		}
		last = seq
	}
	return switches
}

// liveTruth is what the guest's truth has beside the layout's.
type liveTruth struct {
	Build     string
	Kernel    TruthKernel
	Drivers   []TruthModule
	Live      bool
	Processes []liveTruthProcess
}

type liveTruthProcess struct {
	TruthProcess
	Status   uint32 `json:"exit_status"`
	State    string
	Handles  int
	Faults   uint64
	Syscalls uint64
	Ticks    uint64
}

func (g *guest) truth() liveTruth {
	g.t.Helper()
	g.send("truth")
	g.expect(`^TRUTH-BEGIN$`)
	var doc strings.Builder
	for {
		line := g.next()
		if line == "TRUTH-END" {
			break
		}
		doc.WriteString(line)
	}
	var out liveTruth
	if err := json.Unmarshal([]byte(doc.String()), &out); err != nil {
		g.t.Fatalf("the truth is no JSON: %v", err)
	}
	return out
}

func (l liveTruth) byPID(pid uint64) *liveTruthProcess {
	for i := range l.Processes {
		if l.Processes[i].PID == pid {
			return &l.Processes[i]
		}
	}
	return nil
}

// start has the guest start a program and returns its pid.
func (g *guest) start(name string) uint64 {
	g.t.Helper()
	g.send("start %s", name)
	pid, err := strconv.ParseUint(g.expect(`^START (\d+) ` + regexp.QuoteMeta(name) + `$`)[1], 10, 64)
	if err != nil {
		g.t.Fatal(err)
	}
	return pid
}

// pidOf is the process of a name in the layout.
func (g *guest) pidOf(name string) uint64 {
	g.t.Helper()
	for _, p := range g.machine.Truth.Processes {
		if p.Name == name {
			return p.PID
		}
	}
	g.t.Fatalf("the layout has no %s", name)
	return 0
}

// widths are those of programs that the guest has: a 32-bit one has no wow64.
func (g *guest) widths(names ...string) (out []string) {
	for _, name := range names {
		if !g.machine.Build.X86 || !strings.HasPrefix(name, "wow") {
			out = append(out, name)
		}
	}
	return out
}

// TestLive boots every build and has it do everything once.
func TestLive(t *testing.T) {
	for _, c := range []struct {
		machine string
		Options
	}{
		{"pc", Options{Build: "6.1.7601", Absent: true}},
		{"q35", Options{Build: "10.0.19041", Absent: true}},
		{"q35", Options{Build: "10.0.22000"}},
		{"pc", Options{Build: "10.0.19041", KVAShadow: true}},
		{"q35", Options{Build: "10.0.22000", KVAShadow: true, Absent: true}},
		{"q35", Options{Build: "10.0.26100", LA57: true}},
		{"q35", Options{Build: "10.0.19041", KVAShadow: true, LA57: true}},
		{"pc", Options{Build: "6.1.7601-x86", Absent: true}},
		{"q35", Options{Build: "6.1.7601-x86", KVAShadow: true, ThreeGB: true}},
		{"q35", Options{Build: "6.1.7601-x86-pae", ThreeGB: true, Absent: true}},
		{"q35", Options{Build: "10.0.19041-x86", KVAShadow: true}},
	} {
		name := c.Build + "-" + c.machine
		if c.KVAShadow {
			name += "-shadow"
		}
		if c.LA57 {
			name += "-la57"
		}
		if c.ThreeGB {
			name += "-3gb"
		}
		c.Seed = 7
		t.Run(name, func(t *testing.T) {
			g := boot(t, c.Options, c.machine)
			g.expect(`^processor 1 up$`)
			g.heartbeats(2)
			checkAgainstLayout(t, g)
			checkList(t, g)
			checkProgress(t, g)
			if !g.machine.Build.X86 {
				pid := g.start("syscheck.exe")
				g.expect(fmt.Sprintf(`^EXIT %d syscheck.exe 0x0$`, pid))
			}
			if !c.KVAShadow && !c.LA57 { // the same code with and without
				checkChurn(t, g)
				checkFreeze(t, g)
			}
			checkKill(t, g)
			g.heartbeats(2)
		})
	}
}

// checkAgainstLayout compares what the running guest says of itself with what was
// laid out.
func checkAgainstLayout(t *testing.T, g *guest) {
	live, laid := g.truth(), g.machine.Truth
	if !live.Live || live.Build != laid.Build || live.Kernel != laid.Kernel || len(live.Drivers) != len(laid.Drivers) {
		t.Errorf("live truth: build %q, kernel %+v, %d drivers; laid out: %q, %+v, %d", live.Build, live.Kernel, len(live.Drivers),
			laid.Build, laid.Kernel, len(laid.Drivers))
	}
	for _, want := range laid.Processes {
		got := live.byPID(want.PID)
		if got == nil {
			t.Errorf("process %d %s is not there", want.PID, want.Name)
			continue
		}
		if got.Name != want.Name || got.Path != want.Path || got.PPID != want.PPID || got.Session != want.Session ||
			got.DTB != want.DTB || got.UserDTB != want.UserDTB || got.EPROCESS != want.EPROCESS || got.PEB != want.PEB ||
			got.PEB32 != want.PEB32 || got.Wow64 != want.Wow64 || !got.Created.Equal(want.Created) ||
			(got.Exited == nil) != (want.Exited == nil) || got.Threads != want.Threads || len(got.Modules) != len(want.Modules) {
			t.Errorf("process %d:\n live %+v\n laid %+v", want.PID, got.TruthProcess, want)
		}
	}
}

// checkList compares the short list of processes with the truth.
func checkList(t *testing.T, g *guest) {
	g.send("pause")
	g.expect(`^CHURN 0$`)
	var want, got []string
	for _, p := range g.truth().Processes {
		if p.State == "running" {
			want = append(want, fmt.Sprintf("%d %s %d", p.PID, p.Name, p.Threads))
		}
	}
	from := len(g.seen)
	g.send("list")
	n := g.expect(`^LISTED (\d+)$`)[1]
	for _, line := range g.seen[from:] {
		if p, ok := strings.CutPrefix(line, "PROCESS "); ok {
			got = append(got, p)
		}
	}
	if n != strconv.Itoa(len(got)) {
		t.Errorf("%d processes are listed, and %s are counted", len(got), n)
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("listed are\n%s\nand the truth has\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	g.send("resume")
	g.expect(`^CHURN 1$`)
}

// checkProgress looks for work done between two moments.
func checkProgress(t *testing.T, g *guest) {
	before := g.truth()
	g.heartbeats(3)
	after := g.truth()
	for _, name := range g.widths("spin.exe", "wowspin.exe", "sleeper.exe", "threads.exe", "malware.exe", "faulter.exe") {
		pid := g.pidOf(name)
		a, b := before.byPID(pid), after.byPID(pid)
		if a == nil || b == nil || b.State != "running" || b.Syscalls <= a.Syscalls {
			t.Errorf("%s makes no progress: %+v, then %+v", name, a, b)
		}
	}
	pid := g.pidOf("faulter.exe")
	if a, b := before.byPID(pid), after.byPID(pid); b.Faults < a.Faults+100 {
		t.Errorf("faulter.exe had %d page faults, then %d", a.Faults, b.Faults)
	}
	pid = g.pidOf("service.exe")
	if a, b := before.byPID(pid), after.byPID(pid); b.Syscalls != a.Syscalls || b.Ticks != a.Ticks {
		t.Errorf("the blocked service.exe ran: %+v, then %+v", a, b)
	}
}

// checkChurn waits for a process to start, end and be forgotten, and then for none to
// do so while churn is off.
func checkChurn(t *testing.T, g *guest) {
	pid := g.expect(`^START (\d+) worker.exe$`)[1]
	g.expect(`^EXIT ` + pid + ` worker.exe 0x0$`)
	n, _ := strconv.ParseUint(pid, 10, 64)
	p := g.truth().byPID(n)
	if p == nil || p.State != "exited" || p.Exited == nil || p.Status != 0 || p.Threads != 0 {
		t.Errorf("worker.exe after its end: %+v", p)
	}
	for i := 0; ; i++ {
		g.heartbeats(1)
		if p := g.truth().byPID(n); p == nil || p.State != "exited" {
			break
		}
		if i == 30 {
			t.Errorf("worker.exe %d never goes away", n)
			break
		}
	}
	g.send("pause")
	g.expect(`^CHURN 0$`)
	from := len(g.seen)
	g.heartbeats(3)
	for _, line := range g.seen[from:] {
		if strings.HasPrefix(line, "START") || strings.HasPrefix(line, "EXIT") {
			t.Errorf("with churn off: %s", line)
		}
	}
	g.send("resume")
	g.expect(`^CHURN 1$`)
	g.expect(`^START `)
}

// checkKill ends processes of every kind from outside.
func checkKill(t *testing.T, g *guest) {
	victims := map[uint64]string{g.pidOf("service.exe"): "service.exe", g.pidOf("threads.exe"): "threads.exe"}
	for _, name := range g.widths("burn.exe", "wowburn.exe", "wowthreads.exe", "faulter.exe", "malware.exe") {
		victims[g.start(name)] = name
	}
	g.heartbeats(2)
	for pid, name := range victims {
		g.send("kill %d 0xC0000906", pid)
		g.expect(fmt.Sprintf(`^EXIT %d %s 0xc0000906$`, pid, regexp.QuoteMeta(name)))
	}
	after := g.truth()
	for pid, name := range victims {
		// Ids are not used again this early; started processes may be gone already.
		if p := after.byPID(pid); p != nil && (p.State != "exited" || p.Status != 0xC0000906 || p.Exited == nil || p.Threads != 0) {
			t.Errorf("%s after its kill: %+v", name, p)
		}
	}
}

// checkFreeze stops all of user mode and lets it go on.
func checkFreeze(t *testing.T, g *guest) {
	g.send("freeze")
	g.expect(`^FROZEN 1$`)
	a := g.heartbeats(1)
	if b := g.heartbeats(2); b != a {
		t.Errorf("%d context switches while frozen", b-a)
	}
	g.send("thaw")
	g.expect(`^FROZEN 0$`)
	g.heartbeats(1)
	if b := g.heartbeats(1); b == a {
		t.Error("nothing runs after the thaw")
	}
}

// long is the first length of a test, and the second one in make test-long.
func long(usual, more int) int {
	if os.Getenv("VMAV_TEST_LONG") != "" {
		return more
	}
	return usual
}

// TestLiveStorm keeps a guest busy with page faults, trimming and processes that come
// and go, for a third of a minute of its own time (make test-long: a whole one), and looks
// for leaks of memory afterwards.
func TestLiveStorm(t *testing.T) {
	g := boot(t, Options{Build: "10.0.22000", Seed: 3}, "q35")
	g.heartbeats(1) // what is typed before the serial line is set up is lost
	var pids []uint64
	for _, name := range []string{"faulter.exe", "faulter.exe", "threads.exe", "wowthreads.exe", "burn.exe"} {
		pids = append(pids, g.start(name))
	}
	free := func() int {
		n, err := strconv.Atoi(g.expect(`^HB .* free=(\d+)$`)[1])
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for range long(5, 10) {
		free()
	}
	early := free()
	for i := range long(15, 50) {
		if i%5 == 0 {
			g.send("trim %d", pids[2])
			g.expect(`^TRIMMED \d+$`)
			g.send("evict %d", pids[2])
			g.expect(`^EVICTED \d+$`)
			g.start("wowworker.exe")
		}
		free()
	}
	late := free()
	if late < early-2000 {
		t.Errorf("free frames fell from %d to %d", early, late)
	}
	truth := g.truth()
	for _, pid := range pids {
		if p := truth.byPID(pid); p == nil || p.State != "running" {
			t.Errorf("process %d did not live through the storm: %+v", pid, p)
		}
	}
}

// TestLiveBugcheck ends a critical process, which must stop the guest with a word on
// the reason, as it does Windows.
func TestLiveBugcheck(t *testing.T) {
	g := boot(t, Options{Build: "10.0.19041", Seed: 1}, "q35")
	g.heartbeats(1)
	g.send("kill %d 1", g.pidOf("services.exe"))
	for line := range g.lines {
		if strings.HasPrefix(line, "BUGCHECK CRITICAL_PROCESS_DIED") {
			return
		}
	}
	t.Error("the guest lives on without services.exe")
}
