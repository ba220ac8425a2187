package live

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vmav.dev/vmav/internal/domain/domaintest"
	"vmav.dev/vmav/internal/e2e/harness"
)

// A domain that starts is swept, and what starts in it later is found, with no command of
// anyone; a Linux is told apart and left alone.
func TestWatchFindsWhatStarts(t *testing.T) {
	t.Parallel()
	if domaintest.Own(t) == nil {
		return
	}
	s := harness.StartService(t)
	g := harness.Start(t, "10.0.19041")
	e := s.Await("sweep of the domain", 0, harness.Says(g, "swept"))
	if e.Trigger != "watch: start" {
		t.Errorf("%s", e.Line)
	}
	s.AwaitMalware(g, 0)
	linux := startLinux(t)
	n := 5
	if text := os.Getenv("VMAV_STARTS"); text != "" {
		if _, err := fmt.Sscan(text, &n); err != nil {
			t.Fatal(err)
		}
	}
	var times, sinceSeen []time.Duration
	for i := range n {
		from, pid := s.Mark(), g.Start("malware.exe")
		begin := time.Now()
		found := s.Await("finding in a new process", from, harness.FindingIn(g, pid))
		if found.Trigger != "watch: new" {
			t.Errorf("%d: %s", i, found.Line)
		}
		// The guest's word comes by a serial line: it can come later than the finding.
		times = append(times, max(0, found.Time.Sub(begin)))
		sinceSeen = append(sinceSeen, time.Duration(found.Since)*time.Millisecond)
		if i%10 == 9 {
			g.Say(fmt.Sprintf("kill %d 0", pid), fmt.Sprintf("EXIT %d ", pid))
			g.Say("reap", "REAPED ")
		}
	}
	t.Logf("from the guest's word of a start to the finding: %s", harness.Distribution(times))
	t.Logf("from seeing a process to the finding: %s", harness.Distribution(sinceSeen))
	// Of each process, once.
	seen := make(map[uint64]int)
	for _, e := range s.All(0, func(e *harness.Entry) bool { return e.Msg == "finding" && e.Domain == g.Name }) {
		if seen[e.PID]++; seen[e.PID] > 1 {
			t.Errorf("told again: %s", e.Line)
		}
	}
	harness.WaitFor(t, "the Linux to be told apart", func() bool {
		_, st, err := s.Status()
		for _, d := range st.Domains {
			if d.Name == linux && d.State == "not Windows" {
				return err == nil
			}
		}
		return false
	})
	out, errs, status := s.Vmav("watch", "status")
	if status != 0 || !strings.Contains(out, g.Name) || !strings.Contains(out, "watched") {
		t.Errorf("status %d: %s %s", status, out, errs)
	}
	if _, errs, status := s.Vmav("watch"); status != 2 || !strings.Contains(errs, "running already") {
		t.Errorf("a second service: status %d, %q", status, errs)
	}
	s.Kill(syscall.SIGTERM)
	if code := s.Cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("stopped by SIGTERM it ends with %d", code)
	}
	if _, errs, status := s.Vmav("watch", "status"); status != 2 || !strings.Contains(errs, "no service runs") {
		t.Errorf("status without a service: %d, %q", status, errs)
	}
}

// Pausing, resuming, saving, restoring and resetting a domain leaves it watched.
func TestWatchFollowsADomainThroughItsStates(t *testing.T) {
	t.Parallel()
	if domaintest.Own(t) == nil {
		return
	}
	s := harness.StartService(t)
	g := harness.Start(t, "10.0.19041")
	s.Await("sweep", 0, harness.Says(g, "swept"))
	harness.Virsh(t, "suspend", g.Name)
	harness.WaitFor(t, "the pause to be noticed", func() bool {
		_, st, _ := s.Status()
		return len(st.Domains) == 1 && st.Domains[0].State == "paused"
	})
	harness.Virsh(t, "resume", g.Name)
	from := s.Mark()
	s.Await("finding after the pause", from, harness.FindingIn(g, g.Start("malware.exe")))

	file := filepath.Join(harness.OpenDir(t), "saved")
	from = s.Mark()
	harness.Virsh(t, "save", g.Name, file)
	s.Await("its end", from, harness.Says(g, "domain gone"))
	from = s.Mark()
	harness.Virsh(t, "restore", file)
	if e := s.Await("sweep after it was restored", from, harness.Says(g, "swept")); e.Findings != 3 {
		t.Errorf("%s", e.Line)
	}

	from = s.Mark()
	harness.Virsh(t, "reset", g.Name)
	s.Await("that its guest is opened anew", from, harness.Says(g, "guest is opened anew"))
	s.Await("sweep after the reset", from, harness.Says(g, "swept"))
	from = s.Mark()
	harness.Virsh(t, "destroy", g.Name)
	s.Await("its end", from, harness.Says(g, "domain gone"))
}

// libvirtd dies: what runs is watched on, what started or ended meanwhile is noticed.
func TestWatchOutlivesLibvirt(t *testing.T) {
	t.Parallel()
	d := domaintest.Own(t)
	if d == nil {
		return
	}
	s := harness.StartService(t)
	a, b := harness.Start(t, "10.0.19041"), harness.Start(t, "6.1.7601")
	s.Await("sweep of a", 0, harness.Says(a, "swept"))
	s.Await("sweep of b", 0, harness.Says(b, "swept"))
	for range 2 {
		from := s.Mark()
		d.Kill()
		s.Await("the loss", from, func(e *harness.Entry) bool { return strings.HasPrefix(e.Msg, "lost the connection") })
		for _, pid := range s.Workers() { // the next ones begin without libvirt, too
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		s.Await("finding without libvirt", from, harness.FindingIn(a, a.Start("malware.exe")))
		d.Start()
		s.Await("connection", from, func(e *harness.Entry) bool { return e.Msg == "connected to libvirt" })
		s.Await("finding with libvirt again", from, harness.FindingIn(b, b.Start("malware.exe")))
	}
	if n := len(s.All(0, harness.Says(a, "swept"))) + len(s.All(0, harness.Says(b, "swept"))); n != 2 {
		t.Errorf("%d sweeps of everything, want those of the start alone", n)
	}
	d.Kill()
	if err := syscall.Kill(harness.PidOf("qemu-system", "guest="+b.Name), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	from := s.Mark()
	d.Start()
	s.Await("b's end", from, harness.Says(b, "domain gone"))
	c := harness.Start(t, "10.0.22000")
	s.Await("sweep of a domain that started after all that", from, harness.Says(c, "swept"))
}

// clamd dies, also in the middle of its work: what was to be scanned is, by the next one.
func TestWatchOutlivesClamd(t *testing.T) {
	t.Parallel()
	if domaintest.Own(t) == nil {
		return
	}
	s := harness.StartService(t)
	g := harness.Start(t, "10.0.19041")
	s.Await("sweep", 0, harness.Says(g, "swept"))
	for range 3 {
		from, pid := s.Mark(), s.Clamd()
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		other := harness.Start(t, "6.1.7601")
		s.Await("other kernel", from, harness.Says(other, "kernel found"))
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		s.Await("sweep by the next clamd", from, harness.Says(other, "swept"))
		s.AwaitMalware(other, from)
		s.Await("finding by the next clamd", from, harness.FindingIn(g, g.Start("malware.exe")))
	}
	if e := s.All(0, func(e *harness.Entry) bool { return e.Msg == "not read in full" }); len(e) > 0 {
		t.Errorf("%s", e[0].Line)
	}
}

// The service dies; the next one finds what came meanwhile.
func TestWatchIsStartedAgain(t *testing.T) {
	t.Parallel()
	if domaintest.Own(t) == nil {
		return
	}
	s := harness.StartService(t)
	g := harness.Start(t, "10.0.19041")
	first := s.Await("sweep", 0, harness.Says(g, "swept"))
	for range 2 {
		s.Kill(syscall.SIGKILL)
		pid := g.Start("malware.exe")
		from := s.Mark()
		s.Run()
		s.Await("finding of what came meanwhile", from, harness.FindingIn(g, pid))
		// What was scanned before is not scanned again, but for what is infected.
		again := s.Await("sweep of the next one", from, harness.Says(g, "swept"))
		if again.Files > 3 || first.Files < 20 || again.Images < first.Images {
			t.Errorf("first %d images in %d files that were scanned, then %d in %d", first.Images, first.Files, again.Images, again.Files)
		}
		s.Await("finding of what comes now", from, harness.FindingIn(g, g.Start("malware.exe")))
	}
}

// The hook in libvirt's own hands: domains start with it, beside another's hook, and the
// service hears of it; whatever it is given, it prints nothing and succeeds.
func TestHookHandsStartsOver(t *testing.T) {
	t.Parallel()
	d := domaintest.Own(t)
	if d == nil {
		return
	}
	s := harness.StartService(t)
	log := filepath.Join(t.TempDir(), "main")
	main := filepath.Join(d.Hooks(), "qemu")
	if err := os.WriteFile(main, []byte("#!/bin/sh\necho \"$2\" >>"+log+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if out, errs, status := s.Vmav("hook", "install", "--hooks-directory", d.Hooks()); status != 0 || !strings.Contains(out, "qemu.d/vmav") {
		t.Fatalf("install: status %d, %q, %q", status, out, errs)
	}
	d.Kill()
	d.Start() // it looks for hooks when it starts
	g := harness.Start(t, "10.0.19041")
	s.Await("the hook's word", 0, func(e *harness.Entry) bool { return e.Msg == "hook" && e.Domain == g.Name })
	s.Await("sweep", 0, harness.Says(g, "swept"))
	harness.Virsh(t, "suspend", g.Name)
	harness.Virsh(t, "resume", g.Name)
	file := filepath.Join(harness.OpenDir(t), "saved")
	harness.Virsh(t, "save", g.Name, file)
	from := s.Mark()
	harness.Virsh(t, "restore", file)
	s.Await("sweep after it was restored", from, harness.Says(g, "swept"))
	harness.Virsh(t, "destroy", g.Name)
	if text, err := os.ReadFile(log); err != nil || !strings.Contains(string(text), "started") || !strings.Contains(string(text), "restore") {
		t.Errorf("the other's hook was run for %q, %v", text, err)
	}
	script := filepath.Join(d.Hooks(), "qemu.d", "vmav")
	for _, op := range []string{"prepare begin -", "start begin -", "started begin -", "stopped end shutdown", "release end shutdown", "migrate begin -",
		"restore begin -",
		"reconnect begin -", "attach begin -", "unknown", "started $(touch x) ; echo", ""} {
		cmd := exec.Command(script, append([]string{`evil"';*$(x)`}, strings.Fields(op)...)...)
		cmd.Stdin = strings.NewReader(strings.Repeat("<domain type='kvm'/>\n", 50000))
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v, printed %q", op, err, out)
		}
	}

	// A service that hangs costs a start no more than the hand-over's bound.
	if err := s.Cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(script, "win", "started", "begin", "-")
	out, err := cmd.CombinedOutput()
	if err2 := s.Cmd.Process.Signal(syscall.SIGCONT); err != nil || err2 != nil || len(out) > 0 {
		t.Errorf("while the service hangs: %v, %v, printed %q", err, err2, out)
	}
	if out, errs, status := s.Vmav("hook", "remove", "--hooks-directory", d.Hooks()); status != 0 || out != "" {
		t.Errorf("remove: status %d, %q, %q", status, out, errs)
	}
	if _, err := os.Stat(script); err == nil {
		t.Error("the hook is still there")
	}
	if _, err := os.Stat(main); err != nil {
		t.Error(err)
	}
}

// What the hook adds to a start, measured beside starts without it; the figure is for
// docs/PERFORMANCE.md.
func TestHookCost(t *testing.T) {
	if os.Getenv("VMAV_TEST_LONG") == "" {
		t.Skip("it tests nothing: make test-long takes the figures")
	}
	t.Parallel()
	d := domaintest.Own(t)
	if d == nil {
		return
	}
	s := harness.StartService(t)
	ops := []string{"prepare", "start", "started"}
	measure := func(script string) (total time.Duration) {
		for _, op := range ops {
			cmd := exec.Command(script, "win", op, "begin", "-")
			cmd.Stdin = strings.NewReader(strings.Repeat("<domain type='kvm'/>\n", 300))
			begin := time.Now()
			if err := cmd.Run(); err != nil {
				t.Fatal(err)
			}
			total += time.Since(begin)
		}
		return total
	}
	if _, errs, status := s.Vmav("hook", "install", "--hooks-directory", d.Hooks()); status != 0 {
		t.Fatalf("install: %d, %q", status, errs)
	}
	nothing := filepath.Join(t.TempDir(), "nothing")
	if err := os.WriteFile(nothing, []byte("#!/bin/sh\ncat >/dev/null\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	var with, without []time.Duration
	for range 50 {
		with = append(with, measure(filepath.Join(d.Hooks(), "qemu.d", "vmav")))
		without = append(without, measure(nothing))
	}
	t.Logf("the three calls of a start, with vmav's hook: %s", harness.Distribution(with))
	t.Logf("with a hook that does nothing: %s", harness.Distribution(without))
}
