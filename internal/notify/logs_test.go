package notify

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmav.dev/vmav/internal/config"
	"vmav.dev/vmav/internal/finding"
)

// journalChild tells the test binary to be the child of TestJournal.
const journalChild = "VMAV_TEST_JOURNAL"

func TestMain(m *testing.M) {
	if os.Getenv(journalChild) != "" {
		if err := runJournal(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// runJournal makes a /run of its own with a socket where the journal has its own, tells
// of a sweep, and prints what came as JSON.
func runJournal() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
		return err
	}
	n, err := Open(config.Report{Journal: true}, Options{})
	if err != nil {
		return err
	}
	n.Domain(scan(), false)
	if err := n.Close(context.Background()); err == nil || !strings.Contains(err.Error(), "journal: 1 events were not delivered") {
		return fmt.Errorf("without a journal: %w", err)
	}
	if n, err := Open(config.Report{Journal: true}, Options{Default: true}); err != nil || len(n.outlets) != 0 {
		return fmt.Errorf("without a journal that nobody asked for: %w", err)
	}
	if err := os.MkdirAll("/run/systemd/journal", 0o755); err != nil {
		return err
	}
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: "/run/systemd/journal/socket"})
	if err != nil {
		return err
	}
	n, err = Open(config.Report{Journal: true}, Options{Trigger: "cli"})
	if err != nil {
		return err
	}
	n.Domain(scan(found("rule", false)), false)
	if err := n.Close(context.Background()); err != nil {
		return err
	}
	var got []map[string]string
	for range 2 {
		entry, err := readEntry(l)
		if err != nil {
			return err
		}
		got = append(got, entry)
	}
	return json.NewEncoder(os.Stdout).Encode(got)
}

// readEntry reads one datagram of the journal's native protocol, of fields on a line each.
func readEntry(l *net.UnixConn) (map[string]string, error) {
	buf := make([]byte, 1<<17)
	if err := l.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return nil, err
	}
	n, err := l.Read(buf)
	if err != nil {
		return nil, err
	}
	out := make(map[string]string)
	for _, line := range strings.Split(strings.TrimSuffix(string(buf[:n]), "\n"), "\n") {
		k, v, ok := strings.Cut(line, "=")
		if !ok {
			return nil, fmt.Errorf("%q is no field", line)
		}
		out[k] = v
	}
	return out, nil
}

// The journal gets what was found in fields, over its own protocol and socket.
func TestJournal(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), journalChild+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	if os.Getuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		t.Skipf("no namespace of one's own can be had here: %v", err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, &errs)
	}
	var got []map[string]string
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatalf("%v: %s", err, &out)
	}
	for k, want := range map[string]string{"PRIORITY": "4", "SYSLOG_IDENTIFIER": "vmav", "MESSAGE_ID": messageFinding, "VMAV_DOMAIN": "win10",
		"VMAV_PID":     "812",
		"VMAV_PROCESS": `ma\x1b[31mlware\x0a.exe"\\xff`, "VMAV_SIGNATURE": "Win.Test", "VMAV_RULE": "rule", "VMAV_ACTION": "kill", "VMAV_OUTCOME": "killed",
		"VMAV_TRIGGER": "cli",
		"MESSAGE":      `win10: ma\x1b[31mlware\x0a.exe"\\xff[812]: C:\x.exe: Win.Test FOUND; kill by rule rule: killed`} {
		if got[0][k] != want {
			t.Errorf("%s is %q, want %q", k, got[0][k], want)
		}
	}
	if s := got[1]; s["PRIORITY"] != "6" || s["MESSAGE_ID"] != messageSweep || s["VMAV_STATUS"] != "scanned" || s["VMAV_FINDINGS"] != "1" {
		t.Errorf("%v", s)
	}
}

func TestSyslog(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "log")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: socket})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	n := notifier(&syslogd{socket: socket})
	f := found("rule", false)
	f.Outcome = finding.Outcome{Code: "failed", Reason: "x"}
	n.Domain(scan(f), false)
	if err := n.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	// Facility daemon is 3; error 3, informational 6 (RFC 5424, section 6.2.1).
	for _, want := range []struct{ prefix, text string }{
		{"<27>", `win10: ma\x1b[31mlware\x0a.exe"\\xff[812]: C:\x.exe: Win.Test FOUND; kill by rule rule: failed: x`},
		{"<30>", "win10: scanned: 0 processes, 12 images, 1 findings, 0 errors"},
	} {
		buf := make([]byte, 1<<16)
		if err := l.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		m, err := l.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(buf[:m]); !strings.HasPrefix(got, want.prefix) || !strings.Contains(got, fmt.Sprintf(" vmav[%d]: ", os.Getpid())) ||
			!strings.Contains(got, want.text) ||
			strings.Count(got, "\n") != 1 {
			t.Errorf("%q, want %s…%s", got, want.prefix, want.text)
		}
	}
	n = notifier(&syslogd{socket: socket + "-none"})
	n.Domain(scan(), false)
	if err := n.Close(context.Background()); err == nil || !strings.Contains(err.Error(), "syslog: 1 events were not delivered") {
		t.Errorf("without a syslog: %v", err)
	}
}
