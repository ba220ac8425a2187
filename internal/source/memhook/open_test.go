package memhook

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"vmav.dev/vmav/internal/source"
)

// sleeping is a process that is no VMM.
func sleeping(t *testing.T) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sleep", "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return cmd
}

func TestOpenSaysWhyNot(t *testing.T) {
	ctx := context.Background()
	want := ErrNotKVM
	if _, _, err := Version(); err != nil {
		if !errors.Is(err, ErrAbsent) && !errors.Is(err, ErrDenied) {
			t.Fatalf("asking for the version: %v", err)
		}
		want = errors.Unwrap(err)
	}
	g, err := Open(ctx, "none", sleeping(t).Process.Pid)
	if !errors.Is(err, want) {
		t.Errorf("opening a process that is no VMM: %v, %v; want %v", g, err, want)
	}
	var op *OpError
	if !errors.As(err, &op) || op.Op == "" {
		t.Errorf("%v names no operation", err)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := Open(ended, "none", os.Getpid()); !errors.Is(err, context.Canceled) {
		t.Errorf("with an ended context: %v", err)
	}
}

func TestVMDescriptorIsFoundByName(t *testing.T) {
	if fd, err := vmDescriptor(os.Getpid()); !errors.Is(err, ErrNotKVM) {
		t.Fatalf("before there is a VM: %d, %v", fd, err)
	}
	cmd := sleeping(t)
	cmd.Process.Kill()
	cmd.Wait()
	if fd, err := vmDescriptor(cmd.Process.Pid); !errors.Is(err, source.ErrGone) {
		t.Errorf("of a process that has ended: %d, %v", fd, err)
	}
	kvm, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skipf("this host has no KVM to make a VM with: %v", err)
	}
	defer unix.Close(kvm)
	const createVM = 0xae01 // KVM_CREATE_VM
	vm, err := ioctl(kvm, createVM, nil)
	if err != nil {
		t.Skipf("this host's KVM makes no VM: %v", err)
	}
	defer unix.Close(vm)
	fd, err := vmDescriptor(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var a, b unix.Stat_t
	if unix.Fstat(vm, &a) != nil || unix.Fstat(fd, &b) != nil || a.Ino != b.Ino || fd == vm {
		t.Errorf("descriptor %d found for VM %d", fd, vm)
	}
}

func TestSlotsAreJoined(t *testing.T) {
	ranges, err := joinSlots([]slotArg{{GPA: 0, Size: 0xa0000}, {GPA: 0xc0000, Size: 0x40000}, {GPA: 0x100000, Size: 0x100000}})
	want := []source.Range{{Start: 0, Size: 0xa0000}, {Start: 0xc0000, Size: 0x140000}}
	if err != nil || len(ranges) != 2 || ranges[0] != want[0] || ranges[1] != want[1] {
		t.Errorf("%v, %v; want %v", ranges, err, want)
	}
	for name, slots := range map[string][]slotArg{
		"none": nil, "overlap": {{GPA: 0, Size: 0x2000}, {GPA: 0x1000, Size: 0x1000}}, "part of a page": {{GPA: 0x10, Size: 0x1000}},
		"empty": {{GPA: 0}}, "wrap": {{GPA: 1<<64 - 0x1000, Size: 0x2000}},
	} {
		if ranges, err := joinSlots(slots); err == nil {
			t.Errorf("%s: %v", name, ranges)
		}
	}
}
