package e2e

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
)

var builds = []string{"6.1.7601", "10.0.19041", "10.0.22000"}

// listed is a process as vmav ps lists it.
type listed struct {
	PID, PPID          uint64
	Name, Path         string
	Session            int
	Threads            int
	DTB, EPROCESS, PEB number
	Exited             *string
}

func line(pid, ppid uint64, name, path string, session, threads int, dtb, eprocess, peb uint64, exited bool) string {
	return fmt.Sprintf("%d %d %s %s session=%d threads=%d %#x %#x %#x exited=%v", pid, ppid, name, path, session, threads, dtb, eprocess, peb, exited)
}

// compare holds ps, modules and drivers of a domain or image against the truth.
func compare(t *testing.T, want truth, target ...string) {
	t.Helper()
	var procs []listed
	decode(t, &procs, 0, append([]string{"ps"}, target...)...)
	var a, b []string
	for _, p := range procs {
		peb := uint64(p.PEB)
		if p.Exited != nil {
			peb = 0 // the address outlives what it pointed to
		}
		a = append(a, line(p.PID, p.PPID, p.Name, p.Path, p.Session, p.Threads, uint64(p.DTB), uint64(p.EPROCESS), peb, p.Exited != nil))
	}
	for _, p := range want.Processes {
		peb := p.PEB
		if p.Exited != nil {
			peb = 0
		}
		b = append(b, line(p.PID, p.PPID, p.Name, p.Path, p.Session, p.Threads, p.DTB, p.EPROCESS, peb, p.Exited != nil))
	}
	same(t, "ps", a, b)

	var mods []module
	decode(t, &mods, 0, append([]string{"modules"}, target...)...)
	a, b = nil, nil
	for _, m := range mods {
		a = append(a, fmt.Sprintf("%d %s %s %#x %d", m.PID, m.Name, m.Path, uint64(m.Base), m.Size))
	}
	for _, p := range want.Processes {
		for _, m := range p.Modules {
			if p.Exited == nil {
				b = append(b, fmt.Sprintf("%d %s %s %#x %d", p.PID, m.Name, m.Path, uint64(m.Base), m.Size))
			}
		}
	}
	same(t, "modules", a, b)

	var drivers []module
	decode(t, &drivers, 0, append([]string{"drivers"}, target...)...)
	a, b = nil, nil
	for _, m := range drivers {
		a = append(a, fmt.Sprintf("%s %s %#x %d", m.Name, m.Path, uint64(m.Base), m.Size))
	}
	for _, m := range want.Drivers {
		b = append(b, fmt.Sprintf("%s %s %#x %d", m.Name, m.Path, uint64(m.Base), m.Size))
	}
	same(t, "drivers", a, b)
}

func same(t *testing.T, what string, got, want []string) {
	t.Helper()
	slices.Sort(got)
	slices.Sort(want)
	for _, g := range got {
		if !slices.Contains(want, g) {
			t.Errorf("%s: vmav alone has %s", what, g)
		}
	}
	for _, w := range want {
		if !slices.Contains(got, w) {
			t.Errorf("%s: the guest alone has %s", what, w)
		}
	}
	if len(want) == 0 {
		t.Errorf("%s: the truth is empty", what)
	}
}

func TestListsEqualTheGuestsOwnAccount(t *testing.T) {
	for _, build := range builds {
		for form, more := range map[string][]string{"plain": nil, "shadow": {"--kva-shadow"}, "la57": {"--la57"}, "shadow la57": {"--kva-shadow", "--la57"}} {
			if len(more) > 0 && build[0] == '6' || len(more) > 1 && build != builds[len(builds)-1] {
				continue
			}
			t.Run(build+"/"+form, func(t *testing.T) {
				g := start(t, build, more...)
				g.say("pause", "CHURN 0")
				g.say("freeze", "FROZEN 1")
				want := g.truth()
				compare(t, want, g.name, "-c", uri)

				// The same guest, saved: as an ELF core, and turned into the other forms.
				dir := openDir(t)
				core := filepath.Join(dir, "guest.core")
				virsh(t, "dump", "--memory-only", "--live", g.name, core)
				if err := os.Chmod(core, 0o644); err != nil {
					t.Fatal(err)
				}
				compare(t, want, "-a", core)
				if form == "shadow" {
					return
				}
				raw, lime := filepath.Join(dir, "guest.raw"), filepath.Join(dir, "guest.lime")
				convert(t, core, raw, lime)
				compare(t, want, "-a", raw)
				compare(t, want, "-a", lime)
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

// database writes a signature for the guest's malware.exe, and one for what its
// packed.exe unpacks when it runs.
func database(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "test.ndb")
	if err := os.WriteFile(path, []byte(fmt.Sprintf("Vmav.Test.Malware:1:*:%x\nVmav.Test.Unpacked:0:*:%x\n", "VMAV-TEST-MALWARE", "VMAV_TEST_UNPACKED")), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestScanAllFindsTheMalwareAndNamesTheLinux(t *testing.T) {
	a, b := start(t, "6.1.7601"), start(t, "10.0.22000")
	linux := startLinux(t)
	var got scanResult
	decode(t, &got, 1, "scan", "--all", "-c", uri, "-d", database(t))
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
		case a.name, b.name:
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
	if out, _, status := vmav(t, "list", "-c", uri); status != 0 || !strings.Contains(out, "looks like Linux") || !strings.Contains(out, "6.1.7601") {
		t.Errorf("list: status %d\n%s", status, out)
	}
}

// startLinux boots a Debian kernel that finds no root file system and stays.
func startLinux(t *testing.T) string {
	t.Helper()
	kernel, err := filepath.Abs("../../build/linux/vmlinuz")
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(kernel)
	if err != nil {
		t.Fatalf("%v: run make deps first", err)
	}
	dir := openDir(t)
	copied := filepath.Join(dir, "vmlinuz")
	if err := os.WriteFile(copied, data, 0o644); err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("vmav-test-linux-%d", os.Getpid())
	xml := fmt.Sprintf(`<domain type='qemu'><name>%s</name><memory unit='MiB'>256</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type><kernel>%s</kernel><cmdline>console=ttyS0 panic=0</cmdline></os>
<cpu mode='maximum'/><features><acpi/><apic/></features>
<devices><controller type='usb' model='none'/><serial type='file'><source path='%s/log'/></serial><memballoon model='none'/></devices></domain>`, name, copied, dir)
	file := filepath.Join(dir, "linux.xml")
	if err := os.WriteFile(file, []byte(xml), 0o644); err != nil {
		t.Fatal(err)
	}
	virsh(t, "create", file)
	t.Cleanup(func() { virshQuiet(t, "destroy", name) })
	waitFor(t, "the Linux kernel's first words", func() bool {
		log, _ := os.ReadFile(filepath.Join(dir, "log"))
		return strings.Contains(string(log), "Linux version")
	})
	return name
}

// A domain that the module cannot be had for is read through QEMU, and the user is told
// once, however many domains there are; who asked for QEMU is told nothing.
func TestFallbackOnQEMUIsSaidOnce(t *testing.T) {
	if inLab() {
		t.Skip("its guests are the module's")
	}
	start(t, "6.1.7601")
	g := start(t, "10.0.19041")
	for _, tt := range []struct {
		args []string
		said int
	}{{[]string{"list", "-c", uri, "--source", "auto"}, 1}, {[]string{"ps", "--source", "auto", "-c", uri, g.name}, 1}, {[]string{"list", "-c", uri}, 0}} {
		_, errs, status := vmav(t, tt.args...)
		if n := strings.Count(errs, "is read through its QEMU process"); status != 0 || n != tt.said || strings.Count(errs, "\n") != tt.said {
			t.Errorf("vmav %v: status %d, %q; want %d lines about the module", tt.args, status, errs, tt.said)
		}
	}
	if _, errs, status := vmav(t, "ps", "-c", uri, g.name, "--source", "memhook"); status != 2 || !strings.Contains(errs, "kvm-memhook") {
		t.Errorf("the module alone: status %d, %q", status, errs)
	}
	pid := g.start("burn.exe")
	out, _, status := vmav(t, "kill", "-c", uri, g.name, fmt.Sprint(pid))
	if status != 2 || !strings.Contains(out, "refused") || !strings.Contains(out, "kvm-memhook") {
		t.Errorf("killing without the module: status %d, %q", status, out)
	}
	if _, errs, status := vmav(t, "scan", "-c", uri, g.name, "--action", "kill"); status != 2 || !strings.Contains(errs, "kvm-memhook") {
		t.Errorf("a scan that is to kill without the module: status %d, %q", status, errs)
	}
}
