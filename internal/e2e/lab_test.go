package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// inLab says whether this is the nested lab, where nothing may be skipped: the domains
// are KVM's and the module is there.
func inLab() bool { return os.Getenv("VMAV_LAB") != "" }

// lab skips a test that only the nested lab can run (kernel/kvm-memhook/lab).
func lab(t testing.TB) {
	t.Helper()
	if !inLab() {
		t.Skip("needs the nested lab: make test-kvm")
	}
}

// The kernel under the tests is a stock one with the module, and the guests' vCPUs are
// KVM's: whatever else passes here was not passed by an emulation.
func TestLabRunsGuestsUnderKVMWithTheModule(t *testing.T) {
	lab(t)
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
	g := start(t, "10.0.19041")
	pid := pidOf("qemu-system", "guest="+g.name)
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
	a, b := g.expect("HB "), g.expect("HB ")
	if a == b {
		t.Errorf("the heart does not beat: %q twice", a)
	}
}

// What vmav lists in a guest under KVM is what the guest says of itself.
func TestLabListsEqualTheGuestsOwnAccount(t *testing.T) {
	lab(t)
	for _, more := range [][]string{nil, {"--kva-shadow"}} {
		t.Run(strings.Join(append([]string{"10.0.19041"}, more...), " "), func(t *testing.T) {
			g := start(t, "10.0.19041", more...)
			g.say("pause", "CHURN 0")
			g.say("freeze", "FROZEN 1")
			compare(t, g.truth(), g.name, "-c", uri)
			g.say("thaw", "FROZEN 0")
			g.alive()
		})
	}
}
