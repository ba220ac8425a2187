package domain

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// impostor runs a program under a name with the command line of a domain's QEMU.
func impostor(t *testing.T, name, uuid string) int {
	t.Helper()
	program := filepath.Join(t.TempDir(), name)
	// A shell that ignores its arguments stays; most programs refuse them.
	shell, err := os.ReadFile("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, shell, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-c", "read x", "sh", "-uuid", uuid, "-end")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
	for range 100 {
		if line, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid), "cmdline")); strings.Contains(string(line), uuid) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return cmd.Process.Pid
}

func TestImpostorsAreNotRead(t *testing.T) {
	d := Domain{Name: "vmav-no-such-domain", UUID: "5d9f1c6e-0000-4000-8000-0123456789ab"}
	if _, err := findQEMU(d); !errors.Is(err, ErrNotRunning) {
		t.Fatalf("without a process: %v", err)
	}
	impostor(t, "not-an-emulator", d.UUID)
	if pid, err := findQEMU(d); !errors.Is(err, ErrNotRunning) {
		t.Errorf("a program that is no QEMU: %d, %v", pid, err)
	}
	first := impostor(t, "qemu-system-x86_64", d.UUID)
	if pid, err := findQEMU(d); err != nil || pid != first {
		t.Errorf("one QEMU: %d, %v; want %d", pid, err, first)
	}
	impostor(t, "qemu-system-x86_64", d.UUID)
	if pid, err := findQEMU(d); err == nil || !strings.Contains(err.Error(), "all claim") {
		t.Errorf("two that claim the domain: %d, %v", pid, err)
	}
}

// Without the module, or for a process that runs no KVM guest, the QEMU process is read,
// and why is told once.
func TestFallbackIsToldOnce(t *testing.T) {
	d := Domain{Name: "vmav-no-such-domain", UUID: "5d9f1c6e-0000-4000-8000-0123456789ac"}
	pid := impostor(t, "qemu-system-x86_64", d.UUID)
	var told []string
	h := &Host{closed: true} // no libvirt: QEMU cannot be asked for its memory layout
	h.SetBackend(Auto, func(err error) { told = append(told, err.Error()) })
	for range 2 {
		if _, err := h.openProcess(context.Background(), d, pid); !errors.Is(err, os.ErrClosed) {
			t.Errorf("opening without libvirt: %v, want %v", err, os.ErrClosed)
		}
	}
	if len(told) != 1 || !strings.Contains(told[0], d.Name) || !strings.Contains(told[0], "QEMU process: ") {
		t.Errorf("told %q, want one line that names the domain and the reason", told)
	}
	h.SetBackend(Memhook, nil)
	if _, err := h.openProcess(context.Background(), d, pid); err == nil || errors.Is(err, os.ErrClosed) {
		t.Errorf("the module alone: %v, want its own error", err)
	}
	if b, err := ParseBackend("kvm"); err == nil {
		t.Errorf("an unknown backend is %q", b)
	}
}
