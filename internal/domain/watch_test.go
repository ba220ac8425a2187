package domain

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"vmav.dev/vmav/internal/domain/domaintest"
)

// expect reads updates up to one that f accepts.
func expect(t *testing.T, w *Watcher, what string, f func(Update) bool) Update {
	t.Helper()
	late := time.After(time.Minute)
	var seen []string
	for {
		select {
		case u, ok := <-w.Updates():
			if !ok {
				t.Fatalf("no more updates before %s; seen %q", what, seen)
			}
			if f(u) {
				return u
			}
			seen = append(seen, fmt.Sprintf("%s (%s) %s %s", u.Kind, u.Detail, u.Domain.Name, u.Domain.State))
		case <-late:
			t.Fatalf("no %s; seen %q", what, seen)
		}
	}
}

// idle is a domain that boots nothing.
func idle(t *testing.T, name string) string {
	t.Helper()
	xml := fmt.Sprintf(`<domain type='qemu'><name>%s</name><memory unit='MiB'>64</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os><devices><controller type='usb' model='none'/><memballoon model='none'/></devices></domain>`, name)
	file := filepath.Join(t.TempDir(), name+".xml")
	if err := os.WriteFile(file, []byte(xml), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// What happens to a domain is told, with the state that it came to, also what happens
// while libvirtd is dead.
func TestWatcherFollowsDomainsOverTheDaemonsDeath(t *testing.T) {
	d := domaintest.Own(t)
	if d == nil {
		return
	}
	w, err := Watch(context.Background(), WatchOptions{URI: domaintest.URI, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	is := func(name string, kind EventKind, detail string, running, paused bool) func(Update) bool {
		return func(u Update) bool {
			return u.Domain.Name == name && u.Kind == kind && u.Detail == detail && u.Domain.Running == running && u.Domain.Paused == paused
		}
	}
	lists := func(names ...string) func(Update) bool {
		return func(u Update) bool {
			var got []string
			for _, d := range u.Domains {
				got = append(got, d.Name)
			}
			return u.Kind == EventListed && slices.Equal(got, names)
		}
	}
	expect(t, w, "an empty list", lists())
	d.Virsh("define", idle(t, "a"))
	for _, step := range []struct {
		args            []string
		kind            EventKind
		detail          string
		running, paused bool
	}{
		{[]string{"start", "a"}, EventStarted, "booted", true, false},
		{[]string{"suspend", "a"}, EventPaused, "by request", true, true},
		{[]string{"resume", "a"}, EventResumed, "by request", true, false},
		{[]string{"reset", "a"}, EventReset, "", true, false},
		{[]string{"save", "a", filepath.Join(t.TempDir(), "a.saved")}, EventStopped, "saved", false, false},
	} {
		d.Virsh(step.args...)
		expect(t, w, step.args[0], is("a", step.kind, step.detail, step.running, step.paused))
		if step.args[0] == "save" {
			d.Virsh("restore", step.args[2])
			expect(t, w, "restore", func(u Update) bool { return u.Kind == EventStarted && u.Detail == "restored" && u.Domain.Running })
			expect(t, w, "that it runs again", func(u Update) bool { return u.Kind == EventResumed && !u.Domain.Paused })
		}
	}
	d.Virsh("create", idle(t, "b"))
	b := expect(t, w, "b started", is("b", EventStarted, "booted", true, false)).Domain

	// While the daemon is dead b's QEMU ends, and the Host is gone.
	pid, err := findQEMU(b)
	if err != nil {
		t.Fatal(err)
	}
	d.Kill()
	expect(t, w, "the loss", func(u Update) bool { return u.Kind == EventLost && u.Err != nil })
	if w.Host() != nil {
		t.Error("a host while there is no daemon")
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	d.Start()
	expect(t, w, "a list without b", lists("a"))
	if h := w.Host(); h == nil {
		t.Error("no host after the daemon came back")
	} else if got, err := h.Find("a"); err != nil || !got.Running {
		t.Errorf("a is %+v, %v", got, err)
	}
	d.Virsh("destroy", "a")
	expect(t, w, "destroy", is("a", EventStopped, "destroyed", false, false))
	d.Virsh("create", idle(t, "c"))
	c := expect(t, w, "c started", is("c", EventStarted, "booted", true, false)).Domain
	if pid, err = findQEMU(c); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	expect(t, w, "c's crash", func(u Update) bool { return u.Domain.UUID == c.UUID && u.Kind == EventStopped && !u.Domain.Running })
}

// Connections that break and are made again cost nothing that stays.
func TestWatcherLeavesNothingBehindAReconnection(t *testing.T) {
	d := domaintest.Own(t)
	if d == nil {
		return
	}
	w, err := Watch(context.Background(), WatchOptions{URI: domaintest.URI, Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	listed := func(u Update) bool { return u.Kind == EventListed }
	expect(t, w, "a list", listed)
	fds := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	var first int
	for i := range 4 {
		d.Kill()
		expect(t, w, "the loss", func(u Update) bool { return u.Kind == EventLost })
		d.Start()
		expect(t, w, "a list", listed)
		switch n := fds(); {
		case i == 0:
			first = n
		case n > first:
			t.Errorf("%d descriptors after %d reconnections, %d after the first", n, i+1, first)
		}
	}
}
