package lab

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"vmav.dev/vmav/internal/e2e/harness"
)

// The kernel under the tests is a stock one with the module, and the guests' vCPUs are
// KVM's: whatever else passes here was not passed by an emulation.
func TestRunsGuestsUnderKVMWithTheModule(t *testing.T) {
	modules, err := os.ReadFile("/proc/modules")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []string{"kvm_amd ", "kvm_memhook "} {
		if !strings.Contains("\n"+string(modules), "\n"+m) {
			t.Errorf("module %s is not loaded", m)
		}
	}
	if _, err := os.Stat("/dev/kvm-memhook"); err != nil {
		t.Error(err)
	}
	g := harness.Shared(t, "10.0.19041")
	pid := harness.PidOf("qemu-system", "guest="+g.Name)
	vcpus := 0
	fds, err := filepath.Glob("/proc/" + strconv.Itoa(pid) + "/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if to, _ := os.Readlink(fd); strings.HasPrefix(to, "anon_inode:kvm-vcpu") {
			vcpus++
		}
	}
	if vcpus != 2 {
		t.Errorf("QEMU %d has %d vCPUs of KVM, want 2", pid, vcpus)
	}
	// It is alive and its processes run.
	a, b := g.Expect("HB "), g.Expect("HB ")
	if a == b {
		t.Errorf("the heart does not beat: %q twice", a)
	}
}

// What vmav lists in a guest under KVM is what the guest says of itself.
func TestListsEqualTheGuestsOwnAccount(t *testing.T) {
	for _, more := range [][]string{nil, {"--kva-shadow"}} {
		t.Run(strings.Join(append([]string{"10.0.19041"}, more...), " "), func(t *testing.T) {
			g := harness.Shared(t, "10.0.19041", more...)
			g.Say("pause", "CHURN 0")
			g.Say("freeze", "FROZEN 1")
			harness.Compare(t, g.Truth(), g.Name, "-c", harness.URI)
			g.Say("thaw", "FROZEN 0")
			g.Alive()
		})
	}
}
