package live

import (
	"debug/elf"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vmav.dev/vmav/internal/e2e/harness"
)

var builds = []string{"6.1.7601", "10.0.19041", "10.0.22000"}

func TestListsEqualTheGuestsOwnAccount(t *testing.T) {
	for _, build := range builds {
		for form, more := range map[string][]string{"plain": nil, "shadow": {"--kva-shadow"}, "la57": {"--la57"}, "shadow la57": {"--kva-shadow", "--la57"}} {
			if len(more) > 0 && build[0] == '6' || len(more) > 1 && build != builds[len(builds)-1] {
				continue
			}
			t.Run(build+"/"+form, func(t *testing.T) {
				t.Parallel()
				g := harness.Start(t, build, more...)
				g.Say("pause", "CHURN 0")
				g.Say("freeze", "FROZEN 1")
				want := g.Truth()
				harness.Compare(t, want, g.Name, "-c", harness.URI)

				// The same guest, saved: as an ELF core, and turned into the other forms.
				dir := harness.OpenDir(t)
				core := filepath.Join(dir, "guest.core")
				harness.Virsh(t, "dump", "--memory-only", "--live", g.Name, core)
				if err := os.Chmod(core, 0o644); err != nil {
					t.Fatal(err)
				}
				harness.Compare(t, want, "-a", core)
				if form == "shadow" {
					return
				}
				raw, lime := filepath.Join(dir, "guest.raw"), filepath.Join(dir, "guest.lime")
				convert(t, core, raw, lime)
				harness.Compare(t, want, "-a", raw)
				harness.Compare(t, want, "-a", lime)
			})
		}
	}
}

// convert writes the memory of an ELF core as a raw image and as LiME.
func convert(t *testing.T, core, raw, lime string) {
	t.Helper()
	f, err := elf.Open(core)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := os.Create(raw)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	l, err := os.Create(lime)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, p := range f.Progs {
		// Not the reset vector's ROM and video memory above 3 GiB.
		if p.Type != elf.PT_LOAD || p.Filesz == 0 || p.Paddr >= 3<<30 {
			continue
		}
		head := make([]byte, 32)
		binary.LittleEndian.PutUint32(head, 0x4c694d45)
		binary.LittleEndian.PutUint32(head[4:], 1)
		binary.LittleEndian.PutUint64(head[8:], p.Paddr)
		binary.LittleEndian.PutUint64(head[16:], p.Paddr+p.Filesz-1)
		if _, err := l.Write(head); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(l, p.Open()); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.NewOffsetWriter(r, int64(p.Paddr)), p.Open()); err != nil {
			t.Fatal(err)
		}
	}
}

// scanResult is what is looked at of vmav scan's JSON.
type scanResult struct {
	Domains []struct {
		Name, Status, Reason, Build string
		Findings                    []struct {
			PID                uint64
			Process, Signature string
			Fidelity           struct{ Form string }
		}
		Errors []struct{ What, Error string }
	}
	Summary struct{ Findings, Scanned, Skipped, Errors int }
}

func TestScanAllFindsTheMalwareAndNamesTheLinux(t *testing.T) {
	a, b := harness.Start(t, "6.1.7601"), harness.Start(t, "10.0.22000")
	linux := startLinux(t)
	var got scanResult
	harness.Decode(t, &got, 1, "scan", "--all", "-c", harness.URI, "-d", harness.Database(t))
	found := 0
	for _, d := range got.Domains {
		for _, e := range d.Errors {
			t.Errorf("%s: %s: %s", d.Name, e.What, e.Error)
		}
		switch d.Name {
		case linux:
			found++
			if d.Status != "skipped" || !strings.Contains(d.Reason, "Linux") {
				t.Errorf("the Linux domain is %s: %s", d.Status, d.Reason)
			}
		case a.Name, b.Name:
			found++
			var seen []string
			for _, f := range d.Findings {
				seen = append(seen, f.Process+" "+f.Signature+" "+f.Fidelity.Form)
			}
			slices.Sort(seen)
			if d.Status != "scanned" || !slices.Equal(seen, []string{"malware.exe Vmav.Test.Malware file", "packed.exe Vmav.Test.Unpacked memory"}) {
				t.Errorf("%s is %s with %+v", d.Name, d.Status, d.Findings)
			}
		}
	}
	if found != 3 || got.Summary.Findings != 4 || got.Summary.Skipped != 1 {
		t.Errorf("%d of the 3 domains, summary %+v", found, got.Summary)
	}
	if out, _, status := harness.Vmav(t, "list", "-c", harness.URI); status != 0 || !strings.Contains(out, "looks like Linux") ||
		!strings.Contains(out, "6.1.7601") {
		t.Errorf("list: status %d\n%s", status, out)
	}
}

// startLinux boots a Debian kernel that finds no root file system and stays.
func startLinux(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(harness.Top(t), "build/linux/vmlinuz"))
	if err != nil {
		t.Fatalf("%v: run testdata/linux.sh first", err)
	}
	dir := harness.OpenDir(t)
	copied := filepath.Join(dir, "vmlinuz")
	if err := os.WriteFile(copied, data, 0o644); err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("vmav-test-linux-%d", os.Getpid())
	xml := fmt.Sprintf(`<domain type='qemu'><name>%s</name><memory unit='MiB'>256</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type><kernel>%s</kernel><cmdline>console=ttyS0 panic=0</cmdline></os>
<cpu mode='maximum'/><features><acpi/><apic/></features>
<devices><controller type='usb' model='none'/><serial type='file'><source path='%s/log'/></serial>
<memballoon model='none'/></devices></domain>`, name, copied, dir)
	file := filepath.Join(dir, "linux.xml")
	if err := os.WriteFile(file, []byte(xml), 0o644); err != nil {
		t.Fatal(err)
	}
	harness.Virsh(t, "create", file)
	t.Cleanup(func() { harness.VirshQuiet(t, "destroy", name) })
	harness.WaitFor(t, "the Linux kernel's first words", func() bool {
		log, _ := os.ReadFile(filepath.Join(dir, "log"))
		return strings.Contains(string(log), "Linux version")
	})
	return name
}

// A domain that the module cannot be had for is read through QEMU, and the user is told
// once, however many domains there are; who asked for QEMU is told nothing.
func TestFallbackOnQEMUIsSaidOnce(t *testing.T) {
	harness.Start(t, "6.1.7601")
	g := harness.Start(t, "10.0.19041")
	for _, tt := range []struct {
		args []string
		said int
	}{{[]string{"list", "-c", harness.URI, "--source", "auto"}, 1}, {[]string{"ps", "--source", "auto", "-c", harness.URI, g.Name}, 1},
		{[]string{"list", "-c", harness.URI}, 0}} {
		_, errs, status := harness.Vmav(t, tt.args...)
		if n := strings.Count(errs, "is read through its QEMU process"); status != 0 || n != tt.said || strings.Count(errs, "\n") != tt.said {
			t.Errorf("vmav %v: status %d, %q; want %d lines about the module", tt.args, status, errs, tt.said)
		}
	}
	if _, errs, status := harness.Vmav(t, "ps", "-c", harness.URI, g.Name, "--source", "memhook"); status != 2 || !strings.Contains(errs, "kvm-memhook") {
		t.Errorf("the module alone: status %d, %q", status, errs)
	}
	pid := g.Start("burn.exe")
	out, _, status := harness.Vmav(t, "kill", "-c", harness.URI, g.Name, fmt.Sprint(pid))
	if status != 2 || !strings.Contains(out, "refused") || !strings.Contains(out, "kvm-memhook") {
		t.Errorf("killing without the module: status %d, %q", status, out)
	}
	if _, errs, status := harness.Vmav(t, "scan", "-c", harness.URI, g.Name, "--action", "kill"); status != 2 || !strings.Contains(errs, "kvm-memhook") {
		t.Errorf("a scan that is to kill without the module: status %d, %q", status, errs)
	}
}
