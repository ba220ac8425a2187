package harness

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

// Entry is one line of a service's log.
type Entry struct {
	Msg, Domain, Process, Signature, Action, Outcome, Trigger, Image string
	Time                                                             time.Time
	PID                                                              uint64
	Findings, Images, Files                                          int
	Since                                                            int64 `json:"since_seen_ms"`
	Requested                                                        time.Time
	Dead                                                             *float64 // ms since Requested
	Line                                                             string   `json:"-"` // as it was written
}

// Service is a running vmav watch.
type Service struct {
	t    testing.TB
	args []string
	env  []string
	Cmd  *exec.Cmd
	done chan struct{} // closed when it ended and all of its log was read

	mu    sync.Mutex
	log   []Entry
	other []string // lines that are no log
	grown *sync.Cond
}

// StartService starts the service with the tests' signatures and waits until it listens.
func StartService(t testing.TB, more ...string) *Service {
	t.Helper()
	s := &Service{t: t}
	s.grown = sync.NewCond(&s.mu)
	s.env = append(os.Environ(), "VMAV_CONFIG="+Settings(t, ""))
	if !InLab() {
		s.env = append(s.env, "VMAV_SOURCE=qemu") // these guests run without KVM
	}
	s.args = append([]string{"watch", "-c", URI, "--log", "json", "--debug"}, more...)
	s.Run()
	t.Cleanup(func() {
		s.Kill(syscall.SIGTERM)
		if t.Failed() {
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, e := range s.log[max(0, len(s.log)-60):] {
				t.Log(e.Line)
			}
			t.Log(strings.Join(s.other, "\n"))
		}
	})
	return s
}

// Settings writes a vmav.toml with directories of the test's own and the tests' signatures,
// and more.
func Settings(t testing.TB, more string) string {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "vmav.toml")
	text := fmt.Sprintf("uri = %q\nstate_directory = %q\nruntime_directory = %q\n[clamd]\ndatabases = [%q]\n[report]\njournal = false\n%s",
		URI, filepath.Join(dir, "state"), filepath.Join(dir, "run"), Database(t), more)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// Vmav runs the program with the service's settings.
func (s *Service) Vmav(args ...string) (stdout, stderr string, status int) {
	s.t.Helper()
	return Run(s.t, s.env, args...)
}

// Run starts the program, for the first time or once more.
func (s *Service) Run() {
	s.t.Helper()
	s.Cmd = exec.Command(Bin(s.t, "vmav"), s.args...)
	s.Cmd.Env = s.env
	out, err := s.Cmd.StderrPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.Cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.done = make(chan struct{})
	go s.read(s.Cmd, out, s.done)
	WaitFor(s.t, "the service's socket", func() bool {
		_, status, err := s.Status()
		return err == nil && status.Engine != "" && status.Connected
	})
}

func (s *Service) read(cmd *exec.Cmd, out io.Reader, done chan struct{}) {
	defer close(done)
	in := bufio.NewScanner(out)
	in.Buffer(nil, 1<<20)
	for in.Scan() {
		e := Entry{Line: in.Text()}
		err := json.Unmarshal(in.Bytes(), &e)
		s.mu.Lock()
		if err != nil {
			s.other = append(s.other, e.Line)
		} else {
			s.log = append(s.log, e)
		}
		s.grown.Broadcast()
		s.mu.Unlock()
	}
	_ = cmd.Wait()
}

// Kill ends the service by a signal and waits for it.
func (s *Service) Kill(sig syscall.Signal) {
	s.t.Helper()
	_ = s.Cmd.Process.Signal(sig)
	select {
	case <-s.done:
	case <-time.After(time.Minute):
		_ = s.Cmd.Process.Signal(syscall.SIGQUIT) // its goroutines go to other
		select {
		case <-s.done:
		case <-time.After(time.Minute): // another process has its stderr
		}
		s.t.Errorf("the service did not end within a minute of %v", sig)
	}
}

// Status asks the service with its own command.
func (s *Service) Status() (text string, st watch.Status, err error) {
	cmd := command(s.t, Bin(s.t, "vmav"), "watch", "status", "--format", "json")
	cmd.Env = s.env
	out, err := cmd.Output()
	if err != nil {
		return "", st, err
	}
	return string(out), st, json.Unmarshal(out, &st)
}

// Mark is where the log ends now.
func (s *Service) Mark() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.log)
}

// Await waits for an entry behind a mark.
func (s *Service) Await(what string, from int, f func(*Entry) bool) Entry {
	s.t.Helper()
	patience := patience()
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
			s.t.Fatalf("the log has no %s after %v", what, patience)
		}
		s.grown.Wait()
	}
}

// patience is for how long a service may be silent of what is expected. In the lab everything
// runs some twenty times slower.
func patience() time.Duration {
	if InLab() {
		return 15 * time.Minute
	}
	return 3 * time.Minute
}

// All are the entries behind a mark that f accepts.
func (s *Service) All(from int, f func(*Entry) bool) []Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Entry
	for i := from; i < len(s.log); i++ {
		if f(&s.log[i]) {
			out = append(out, s.log[i])
		}
	}
	return out
}

// FindingIn accepts the finding in a process of a domain.
func FindingIn(g *Guest, pid uint64) func(*Entry) bool {
	return func(e *Entry) bool {
		return e.Msg == "finding" && e.Domain == g.Name && e.PID == pid && e.Signature == "Vmav.Test.Malware"
	}
}

// AwaitMalware waits for the finding in the malware that every test guest runs. Its packed
// program unpacks itself some time after the guest's boot, before a sweep or behind it.
func (s *Service) AwaitMalware(g *Guest, from int) {
	s.t.Helper()
	s.Await("finding in malware.exe", from, func(e *Entry) bool { return e.Msg == "finding" && e.Domain == g.Name && e.Process == "malware.exe" })
}

// Says accepts a line of the log about a domain.
func Says(g *Guest, msg string) func(*Entry) bool {
	return func(e *Entry) bool { return e.Msg == msg && e.Domain == g.Name }
}

// Clamd is the service's private clamd, as soon as there is one.
func (s *Service) Clamd() (pid int) {
	s.t.Helper()
	WaitFor(s.t, "the service's clamd", func() bool {
		all := s.children("clamd")
		if len(all) > 0 {
			pid = all[0]
		}
		return len(all) > 0
	})
	return pid
}

// Workers are the sandboxed processes that the service has read guests with at the moment.
func (s *Service) Workers() []int { return s.children("exe") } // started as /proc/self/exe

// children are the service's living child processes of a name.
func (s *Service) children(name string) (pids []int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range stats {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(text), ") ")
		f := strings.Fields(rest)
		if strings.Contains(string(text), "("+name+")") && len(f) > 1 && f[0] != "Z" && f[1] == strconv.Itoa(s.Cmd.Process.Pid) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			pids = append(pids, pid)
		}
	}
	return pids
}

// holds is what the service has: open files by what they are, and resident bytes.
func (s *Service) holds() (files []string, resident uint64) {
	s.t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", s.Cmd.Process.Pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			files = append(files, target)
		}
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", s.Cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	pages, err := strconv.ParseUint(strings.Fields(string(text))[1], 10, 64)
	if err != nil {
		s.t.Fatal(err)
	}
	return files, pages * uint64(os.Getpagesize())
}
