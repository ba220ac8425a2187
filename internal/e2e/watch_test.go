package e2e

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
)

// A domain that starts is swept, and what starts in it later is found, with no command of
// anyone; a Linux is told apart and left alone.
func TestWatchFindsWhatStarts(t *testing.T) {
	if domaintest.Own(t) == nil {
		return
	}
	s := startService(t)
	g := start(t, "10.0.19041")
	e := s.await("sweep of the domain", 0, says(g, "swept"))
	if e.Trigger != "watch: start" {
		t.Errorf("%s", e.text)
	}
	s.awaitMalware(g, 0)
	linux := startLinux(t)
	n := 5
	if text := os.Getenv("VMAV_STARTS"); text != "" {
		if _, err := fmt.Sscan(text, &n); err != nil {
			t.Fatal(err)
		}
	}
	var times, sinceSeen []time.Duration
	for i := range n {
		from, pid := s.mark(), g.start("malware.exe")
		begin := time.Now()
		found := s.await("finding in a new process", from, findingIn(g, pid))
		if found.Trigger != "watch: new" {
			t.Errorf("%d: %s", i, found.text)
		}
		// The guest's word comes by a serial line: it can come later than the finding.
		times = append(times, max(0, found.Time.Sub(begin)))
		sinceSeen = append(sinceSeen, time.Duration(found.Since)*time.Millisecond)
		if i%10 == 9 {
			g.say(fmt.Sprintf("kill %d 0", pid), fmt.Sprintf("EXIT %d ", pid))
			g.say("reap", "REAPED ")
		}
	}
	t.Logf("from the guest's word of a start to the finding: %s", distribution(times))
	t.Logf("from seeing a process to the finding: %s", distribution(sinceSeen))
	// Of each process, once.
	seen := make(map[uint64]int)
	for _, e := range s.all(0, func(e *entry) bool { return e.Msg == "finding" && e.Domain == g.name }) {
		if seen[e.PID]++; seen[e.PID] > 1 {
			t.Errorf("told again: %s", e.text)
		}
	}
	waitFor(t, "the Linux to be told apart", func() bool {
		_, st, err := s.status()
		for _, d := range st.Domains {
			if d.Name == linux && d.State == "not Windows" {
				return err == nil
			}
		}
		return false
	})
	out, errs, status := s.vmav("watch", "status")
	if status != 0 || !strings.Contains(out, g.name) || !strings.Contains(out, "watched") {
		t.Errorf("status %d: %s %s", status, out, errs)
	}
	if _, errs, status := s.vmav("watch"); status != 2 || !strings.Contains(errs, "running already") {
		t.Errorf("a second service: status %d, %q", status, errs)
	}
	s.kill(syscall.SIGTERM)
	if code := s.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("stopped by SIGTERM it ends with %d", code)
	}
	if _, errs, status := s.vmav("watch", "status"); status != 2 || !strings.Contains(errs, "no service runs") {
		t.Errorf("status without a service: %d, %q", status, errs)
	}
}

// Pausing, resuming, saving, restoring and resetting a domain leaves it watched.
func TestWatchFollowsADomainThroughItsStates(t *testing.T) {
	if domaintest.Own(t) == nil {
		return
	}
	s := startService(t)
	g := start(t, "10.0.19041")
	s.await("sweep", 0, says(g, "swept"))
	virsh(t, "suspend", g.name)
	waitFor(t, "the pause to be noticed", func() bool {
		_, st, _ := s.status()
		return len(st.Domains) == 1 && st.Domains[0].State == "paused"
	})
	virsh(t, "resume", g.name)
	from := s.mark()
	s.await("finding after the pause", from, findingIn(g, g.start("malware.exe")))

	file := filepath.Join(openDir(t), "saved")
	from = s.mark()
	virsh(t, "save", g.name, file)
	s.await("its end", from, says(g, "domain gone"))
	from = s.mark()
	virsh(t, "restore", file)
	if e := s.await("sweep after it was restored", from, says(g, "swept")); e.Findings != 3 {
		t.Errorf("%s", e.text)
	}

	from = s.mark()
	virsh(t, "reset", g.name)
	s.await("that its guest is opened anew", from, says(g, "guest is opened anew"))
	s.await("sweep after the reset", from, says(g, "swept"))
	from = s.mark()
	virsh(t, "destroy", g.name)
	s.await("its end", from, says(g, "domain gone"))
}

// libvirtd dies: what runs is watched on, what started or ended meanwhile is noticed.
func TestWatchOutlivesLibvirt(t *testing.T) {
	d := domaintest.Own(t)
	if d == nil {
		return
	}
	s := startService(t)
	a, b := start(t, "10.0.19041"), start(t, "6.1.7601")
	s.await("sweep of a", 0, says(a, "swept"))
	s.await("sweep of b", 0, says(b, "swept"))
	for range 2 {
		from := s.mark()
		d.Kill()
		s.await("the loss", from, func(e *entry) bool { return strings.HasPrefix(e.Msg, "lost the connection") })
		for _, pid := range s.workers() { // the next ones begin without libvirt, too
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		s.await("finding without libvirt", from, findingIn(a, a.start("malware.exe")))
		d.Start()
		s.await("connection", from, func(e *entry) bool { return e.Msg == "connected to libvirt" })
		s.await("finding with libvirt again", from, findingIn(b, b.start("malware.exe")))
	}
	if n := len(s.all(0, says(a, "swept"))) + len(s.all(0, says(b, "swept"))); n != 2 {
		t.Errorf("%d sweeps of everything, want those of the start alone", n)
	}
	d.Kill()
	if err := syscall.Kill(pidOf("qemu-system", "guest="+b.name), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	from := s.mark()
	d.Start()
	s.await("b's end", from, says(b, "domain gone"))
	c := start(t, "10.0.22000")
	s.await("sweep of a domain that started after all that", from, says(c, "swept"))
}

// clamd dies, also in the middle of its work: what was to be scanned is, by the next one.
func TestWatchOutlivesClamd(t *testing.T) {
	if domaintest.Own(t) == nil {
		return
	}
	s := startService(t)
	g := start(t, "10.0.19041")
	s.await("sweep", 0, says(g, "swept"))
	for range 3 {
		from, pid := s.mark(), s.clamd()
		if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		other := start(t, "6.1.7601")
		s.await("other kernel", from, says(other, "kernel found"))
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		s.await("sweep by the next clamd", from, says(other, "swept"))
		s.awaitMalware(other, from)
		s.await("finding by the next clamd", from, findingIn(g, g.start("malware.exe")))
	}
	if e := s.all(0, func(e *entry) bool { return e.Msg == "not read in full" }); len(e) > 0 {
		t.Errorf("%s", e[0].text)
	}
}

// The service dies; the next one finds what came meanwhile.
func TestWatchIsStartedAgain(t *testing.T) {
	if domaintest.Own(t) == nil {
		return
	}
	s := startService(t)
	g := start(t, "10.0.19041")
	first := s.await("sweep", 0, says(g, "swept"))
	for range 2 {
		s.kill(syscall.SIGKILL)
		pid := g.start("malware.exe")
		from := s.mark()
		s.run()
		s.await("finding of what came meanwhile", from, findingIn(g, pid))
		// What was scanned before is not scanned again, but for what is infected.
		again := s.await("sweep of the next one", from, says(g, "swept"))
		if again.Files > 3 || first.Files < 20 || again.Images < first.Images {
			t.Errorf("first %d images in %d files that were scanned, then %d in %d", first.Images, first.Files, again.Images, again.Files)
		}
		s.await("finding of what comes now", from, findingIn(g, g.start("malware.exe")))
	}
}

// The hook in libvirt's own hands: domains start with it, beside another's hook, and the
// service hears of it; whatever it is given, it prints nothing and succeeds.
func TestHookHandsStartsOver(t *testing.T) {
	d := domaintest.Own(t)
	if d == nil {
		return
	}
	s := startService(t)
	log := filepath.Join(t.TempDir(), "main")
	main := filepath.Join(d.Hooks(), "qemu")
	if err := os.WriteFile(main, []byte("#!/bin/sh\necho \"$2\" >>"+log+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if out, errs, status := s.vmav("hook", "install", "--hooks-directory", d.Hooks()); status != 0 || !strings.Contains(out, "qemu.d/vmav") {
		t.Fatalf("install: status %d, %q, %q", status, out, errs)
	}
	d.Kill()
	d.Start() // it looks for hooks when it starts
	g := start(t, "10.0.19041")
	s.await("the hook's word", 0, func(e *entry) bool { return e.Msg == "hook" && e.Domain == g.name })
	s.await("sweep", 0, says(g, "swept"))
	virsh(t, "suspend", g.name)
	virsh(t, "resume", g.name)
	file := filepath.Join(openDir(t), "saved")
	virsh(t, "save", g.name, file)
	from := s.mark()
	virsh(t, "restore", file)
	s.await("sweep after it was restored", from, says(g, "swept"))
	virsh(t, "destroy", g.name)
	if text, err := os.ReadFile(log); err != nil || !strings.Contains(string(text), "started") || !strings.Contains(string(text), "restore") {
		t.Errorf("the other's hook was run for %q, %v", text, err)
	}
	script := filepath.Join(d.Hooks(), "qemu.d", "vmav")
	for _, op := range []string{"prepare begin -", "start begin -", "started begin -", "stopped end shutdown", "release end shutdown", "migrate begin -", "restore begin -",
		"reconnect begin -", "attach begin -", "unknown", "started $(touch x) ; echo", ""} {
		cmd := exec.Command(script, append([]string{`evil"';*$(x)`}, strings.Fields(op)...)...)
		cmd.Stdin = strings.NewReader(strings.Repeat("<domain type='kvm'/>\n", 50000))
		if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v, printed %q", op, err, out)
		}
	}

	// A service that hangs costs a start no more than the hand-over's bound.
	if err := s.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(script, "win", "started", "begin", "-")
	out, err := cmd.CombinedOutput()
	if err2 := s.cmd.Process.Signal(syscall.SIGCONT); err != nil || err2 != nil || len(out) > 0 {
		t.Errorf("while the service hangs: %v, %v, printed %q", err, err2, out)
	}
	if out, errs, status := s.vmav("hook", "remove", "--hooks-directory", d.Hooks()); status != 0 || out != "" {
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
	d := domaintest.Own(t)
	if d == nil {
		return
	}
	s := startService(t)
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
	if _, errs, status := s.vmav("hook", "install", "--hooks-directory", d.Hooks()); status != 0 {
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
	t.Logf("the three calls of a start, with vmav's hook: %s", distribution(with))
	t.Logf("with a hook that does nothing: %s", distribution(without))
}
