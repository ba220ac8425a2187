package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"vmav.dev/vmav/internal/watch"
)

// entry is one line of a service's log.
type entry struct {
	Msg, Domain, Process, Signature, Action, Outcome, Trigger, Image string
	Time                                                             time.Time
	PID                                                              uint64
	Findings, Images, Files                                          int
	Since                                                            int64 `json:"since_seen_ms"`
	Requested                                                        time.Time
	Dead                                                             *float64 // ms since Requested
	text                                                             string
}

// service is a running vmav watch.
type service struct {
	t    testing.TB
	args []string
	env  []string
	cmd  *exec.Cmd
	done chan struct{} // closed when it ended and all of its log was read

	mu    sync.Mutex
	log   []entry
	other []string // lines that are no log
	grown *sync.Cond
}

// startService starts the service with the tests' signatures and waits until it listens.
func startService(t testing.TB, more ...string) *service {
	t.Helper()
	s := &service{t: t}
	s.grown = sync.NewCond(&s.mu)
	s.env = append(os.Environ(), "VMAV_CONFIG="+settings(t, ""))
	if !inLab() {
		s.env = append(s.env, "VMAV_SOURCE=qemu") // these guests run without KVM
	}
	s.args = append([]string{"watch", "-c", uri, "--log", "json", "--debug"}, more...)
	s.run()
	t.Cleanup(func() {
		s.kill(syscall.SIGTERM)
		if t.Failed() {
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, e := range s.log[max(0, len(s.log)-60):] {
				t.Log(e.text)
			}
			t.Log(strings.Join(s.other, "\n"))
		}
	})
	return s
}

// settings writes a vmav.toml with directories of the test's own and the tests' signatures,
// and more.
func settings(t testing.TB, more string) string {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "vmav.toml")
	text := fmt.Sprintf("uri = %q\nstate_directory = %q\nruntime_directory = %q\n[clamd]\ndatabases = [%q]\n[report]\njournal = false\n%s",
		uri, filepath.Join(dir, "state"), filepath.Join(dir, "run"), database(t), more)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// vmav runs the program with the service's settings.
func (s *service) vmav(args ...string) (stdout, stderr string, status int) {
	s.t.Helper()
	return run(s.t, s.env, args...)
}

// run starts the program, for the first time or once more.
func (s *service) run() {
	s.t.Helper()
	s.cmd = exec.Command(bin(s.t, "vmav"), s.args...)
	s.cmd.Env = s.env
	out, err := s.cmd.StderrPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.done = make(chan struct{})
	go s.read(s.cmd, out, s.done)
	waitFor(s.t, "the service's socket", func() bool {
		_, status, err := s.status()
		return err == nil && status.Engine != "" && status.Connected
	})
}

func (s *service) read(cmd *exec.Cmd, out io.Reader, done chan struct{}) {
	defer close(done)
	in := bufio.NewScanner(out)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		e := entry{text: in.Text()}
		err := json.Unmarshal(in.Bytes(), &e)
		s.mu.Lock()
		if err != nil {
			s.other = append(s.other, e.text)
		} else {
			s.log = append(s.log, e)
		}
		s.grown.Broadcast()
		s.mu.Unlock()
	}
	_ = cmd.Wait()
}

// kill ends the service by a signal and waits for it.
func (s *service) kill(sig syscall.Signal) {
	s.t.Helper()
	_ = s.cmd.Process.Signal(sig)
	select {
	case <-s.done:
	case <-time.After(time.Minute):
		_ = s.cmd.Process.Signal(syscall.SIGQUIT) // its goroutines go to other
		select {
		case <-s.done:
		case <-time.After(time.Minute): // another process has its stderr
		}
		s.t.Errorf("the service did not end within a minute of %v", sig)
	}
}

// status asks the service with its own command.
func (s *service) status() (text string, st watch.Status, err error) {
	cmd := command(s.t, bin(s.t, "vmav"), "watch", "status", "--format", "json")
	cmd.Env = s.env
	out, err := cmd.Output()
	if err != nil {
		return "", st, err
	}
	return string(out), st, json.Unmarshal(out, &st)
}

// mark is where the log ends now.
func (s *service) mark() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.log)
}

// await waits for an entry behind a mark.
func (s *service) await(what string, from int, f func(*entry) bool) entry {
	s.t.Helper()
	late := time.AfterFunc(patience, s.grown.Broadcast)
	defer late.Stop()
	begin := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	for at := from; ; {
		for ; at < len(s.log); at++ {
			if f(&s.log[at]) {
				return s.log[at]
			}
		}
		if time.Since(begin) > patience-time.Second {
			s.t.Fatalf("the log has no %s", what)
		}
		s.grown.Wait()
	}
}

// patience is for how long a service may be silent of what is expected.
const patience = 3 * time.Minute

// all are the entries behind a mark that f accepts.
func (s *service) all(from int, f func(*entry) bool) []entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []entry
	for i := from; i < len(s.log); i++ {
		if f(&s.log[i]) {
			out = append(out, s.log[i])
		}
	}
	return out
}

// findingIn accepts the finding in a process of a domain.
func findingIn(g *guest, pid uint64) func(*entry) bool {
	return func(e *entry) bool {
		return e.Msg == "finding" && e.Domain == g.name && e.PID == pid && e.Signature == "Vmav.Test.Malware"
	}
}

// awaitMalware waits for the finding in the malware that every test guest runs. Its packed
// program unpacks itself some time after the guest's boot, before a sweep or behind it.
func (s *service) awaitMalware(g *guest, from int) {
	s.t.Helper()
	s.await("finding in malware.exe", from, func(e *entry) bool { return e.Msg == "finding" && e.Domain == g.name && e.Process == "malware.exe" })
}

func says(g *guest, msg string) func(*entry) bool {
	return func(e *entry) bool { return e.Msg == msg && e.Domain == g.name }
}

// clamd is the service's private clamd, as soon as there is one.
func (s *service) clamd() (pid int) {
	s.t.Helper()
	waitFor(s.t, "the service's clamd", func() bool {
		all := s.children("clamd")
		if len(all) > 0 {
			pid = all[0]
		}
		return len(all) > 0
	})
	return pid
}

// workers are the sandboxed processes that the service has read guests with at the moment.
func (s *service) workers() []int { return s.children("exe") } // started as /proc/self/exe

// children are the service's living child processes of a name.
func (s *service) children(name string) (pids []int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range stats {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(text), ") ")
		f := strings.Fields(rest)
		if strings.Contains(string(text), "("+name+")") && len(f) > 1 && f[0] != "Z" && f[1] == strconv.Itoa(s.cmd.Process.Pid) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// holds is what the service has: open files by what they are, and resident bytes.
func (s *service) holds() (files []string, resident uint64) {
	s.t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", s.cmd.Process.Pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			files = append(files, target)
		}
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", s.cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	pages, err := strconv.ParseUint(strings.Fields(string(text))[1], 10, 64)
	if err != nil {
		s.t.Fatal(err)
	}
	return files, pages * uint64(os.Getpagesize())
}
