package ready

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// hostWith is a host whose root holds the given files; a name that ends in / is a directory.
func hostWith(t *testing.T, uid int, files map[string]string) *Inspector {
	t.Helper()
	h := &Inspector{root: t.TempDir(), release: "6.1.0-99-amd64", uid: uid}
	for name, content := range files {
		path := h.path(name)
		if strings.HasSuffix(name, "/") {
			if err := os.MkdirAll(path, 0o755); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

// check compares an answer's state, words of its detail, and its command.
func check(t *testing.T, a Answer, ok bool, detail, fix string) {
	t.Helper()
	if a.OK != ok || !strings.Contains(a.Detail, detail) || a.Fix != fix {
		t.Errorf("%s: got ok %v, %q, fix %q; want ok %v, …%s…, fix %q", a.What, a.OK, a.Detail, a.Fix, ok, detail, fix)
	}
}

func TestKVM(t *testing.T) {
	const amd, plain = "processor\t: 0\nflags\t\t: fpu svm lm\n", "flags : fpu svmx lm\n"
	for _, c := range []struct {
		name        string
		uid         int
		files       map[string]string
		ok          bool
		detail, fix string
	}{
		{"works", 0, map[string]string{"/proc/cpuinfo": amd, "/sys/module/kvm_amd/parameters/npt": "Y\n", "/dev/kvm": ""}, true, "kvm_amd", ""},
		{"not loaded", 1000, map[string]string{"/proc/cpuinfo": amd}, false, "not loaded", "sudo modprobe kvm_amd"},
		{"no device", 0, map[string]string{"/sys/module/kvm_intel/": ""}, false, "no /dev/kvm", "udevadm trigger --subsystem-match=misc"},
		{"no nested paging", 0, map[string]string{"/sys/module/kvm_intel/parameters/ept": "N", "/dev/kvm": ""}, false, "ept=0",
			"rm $(grep -l ept=0 /etc/modprobe.d/*) && modprobe -r kvm_intel && modprobe kvm_intel"},
		{"off in the firmware", 1000, map[string]string{"/proc/cpuinfo": plain}, false, "does not offer",
			"sudo systemctl reboot --firmware-setup # and turn SVM or VT-x on"},
		{"a virtual machine", 0, map[string]string{"/proc/cpuinfo": "flags: fpu hypervisor", "/dev/kvm": ""}, false, "virtual machine",
			"virsh edit MACHINE # on its own host: <cpu mode='host-passthrough'/>"},
	} {
		t.Run(c.name, func(t *testing.T) {
			check(t, hostWith(t, c.uid, c.files).KVM(), c.ok, c.detail, c.fix)
		})
	}
}

func TestUnloadedModule(t *testing.T) {
	const (
		conf    = "/usr/src/kvm-memhook-1.0/dkms.conf"
		headers = "/lib/modules/6.1.0-99-amd64/build/include/"
	)
	for _, c := range []struct {
		name        string
		files       map[string]string
		detail, fix string
	}{
		{"by DKMS", map[string]string{"/lib/modules/6.1.0-99-amd64/updates/dkms/kvm_memhook.ko": ""}, "not loaded", "modprobe kvm_memhook"},
		{"by hand", map[string]string{"/lib/modules/6.1.0-99-amd64/extra/kvm_memhook.ko.xz": ""}, "not loaded", "modprobe kvm_memhook"},
		{"of another kernel", map[string]string{"/lib/modules/6.1.0-98-amd64/updates/dkms/kvm_memhook.ko": "", conf: "", headers: ""},
			"not built for Linux 6.1.0-99-amd64", "dkms install kvm-memhook/1.0 -k 6.1.0-99-amd64"},
		{"nothing", nil, "not installed", "apt-get install vmav-dkms linux-headers-6.1.0-99-amd64"},
		{"no headers", map[string]string{conf: ""}, "headers of Linux 6.1.0-99-amd64", "apt-get install linux-headers-6.1.0-99-amd64"},
		{"does not build", map[string]string{conf: "", headers: "", "/var/lib/dkms/kvm-memhook/1.0/build/make.log": "error"},
			"see /var/lib/dkms/kvm-memhook/1.0/build/make.log",
			"dkms install --force kvm-memhook/1.0 -k 6.1.0-99-amd64"},
	} {
		t.Run(c.name, func(t *testing.T) {
			detail, fix := hostWith(t, 0, c.files).unloaded()
			if !strings.Contains(detail, c.detail) || fix != c.fix {
				t.Errorf("got %q, fix %q; want …%s…, fix %q", detail, fix, c.detail, c.fix)
			}
		})
	}
}

func TestSignatureEnforcement(t *testing.T) {
	const secure = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
	for _, c := range []struct {
		name     string
		files    map[string]string
		enforced bool
		fix      string
	}{
		{"free", map[string]string{"/sys/module/module/parameters/sig_enforce": "N\n", "/sys/kernel/security/lockdown": "[none] integrity confidentiality\n",
			secure: "\x06\x00\x00\x00\x00"}, false, ""},
		{"secure boot", map[string]string{secure: "\x06\x00\x00\x00\x01", "/var/lib/dkms/mok.pub": "cert"}, true,
			"mokutil --import /var/lib/dkms/mok.pub # then reboot, and enrol it"},
		{"a variable cut short", map[string]string{secure: "\x01"}, false, ""},
		{"lockdown", map[string]string{"/sys/kernel/security/lockdown": "none [integrity] confidentiality\n"}, true,
			"dkms generate_mok && mokutil --import /var/lib/dkms/mok.pub"},
		{"enforced", map[string]string{"/sys/module/module/parameters/sig_enforce": "Y\n", "/var/lib/dkms/mok.pub": ""}, true,
			"mokutil --import /var/lib/dkms/mok.pub # then reboot, and enrol it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, enforced := hostWith(t, 0, c.files).signatures()
			if enforced != c.enforced || a.Fix != c.fix {
				t.Errorf("got %v, fix %q; want %v, fix %q", enforced, a.Fix, c.enforced, c.fix)
			}
		})
	}
}

func TestDevice(t *testing.T) {
	group := "root:x:0:\nvmav:x:" + strconv.Itoa(os.Getegid()) + ":\n"
	for _, c := range []struct {
		name        string
		group       string
		mode        os.FileMode
		ok          bool
		detail, fix string
	}{
		{"the group's", group, 0o660, true, "the group vmav's", ""},
		{"open to all", group, 0o666, false, "mode 0666", "chgrp vmav /dev/kvm-memhook && chmod 660 /dev/kvm-memhook"},
		{"another group's", "vmav:x:4242:\n", 0o660, false, "not vmav and 0660", "chgrp vmav /dev/kvm-memhook && chmod 660 /dev/kvm-memhook"},
		{"no group", "vmavx:x:1:\n", 0o660, false, "no group vmav", "groupadd --system vmav"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := hostWith(t, 0, map[string]string{"/dev/kvm-memhook": "", "/etc/group": c.group})
			if err := os.Chmod(h.path("/dev/kvm-memhook"), c.mode); err != nil {
				t.Fatal(err)
			}
			check(t, h.device(), c.ok, c.detail, c.fix)
		})
	}
}

func TestPtrace(t *testing.T) {
	const all, none, traces = "CapEff:\t000001ffffffffff\n", "CapEff:\t0000000000000000\n", "CapEff:\t0000000000080000\n"
	for _, c := range []struct {
		name        string
		uid         int
		caps, scope string
		ok          bool
		detail, fix string
	}{
		{"root", 0, all, "2", true, "CAP_SYS_PTRACE", ""},
		{"that capability alone", 1000, traces, "1", true, "CAP_SYS_PTRACE", ""},
		{"locked for all", 0, all, "3", false, "is 3", "sed -i /ptrace_scope/d /etc/sysctl.conf /etc/sysctl.d/*.conf && reboot"},
		{"a user", 1000, none, "0", true, "of this user", ""},
		{"a user under Yama", 1000, none, "1", false, "is 1", "sudo vmav check"},
		{"a root of a container", 0, none, "", false, "without CAP_SYS_PTRACE",
			"systemctl edit --full vmav-watch # or run vmav outside of what took the capability away"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := hostWith(t, c.uid, map[string]string{"/proc/self/status": "Name:\tvmav\n" + c.caps, "/proc/sys/kernel/yama/ptrace_scope": c.scope})
			check(t, h.Ptrace(), c.ok, c.detail, c.fix)
		})
	}
}

func TestService(t *testing.T) {
	const unit, systemd, hook = "/lib/systemd/system/vmav-watch.service", "/run/systemd/system/", "/etc/libvirt/hooks/qemu.d/vmav"
	stat := func(start string) string {
		return "77 (a ) b) S 1 " + strings.Repeat("0 ", 17) + start + " 0 0\n"
	}
	for _, c := range []struct {
		name        string
		files       map[string]string
		mode        os.FileMode
		row         int
		ok          bool
		detail, fix string
	}{
		{"runs", map[string]string{unit: "", systemd: "", "/proc/12/cmdline": "/usr/bin/vmav\x00watch\x00"}, 0, 0, true, "pid 12", ""},
		{"another vmav", map[string]string{unit: "", systemd: "", "/proc/12/cmdline": "/usr/bin/vmav\x00scan\x00--all\x00"}, 0, 0, false, "does not run",
			"systemctl enable --now vmav-watch"},
		{"no systemd", map[string]string{unit: ""}, 0, 0, false, "cron", "vmav watch &"},
		{"no package", nil, 0, 0, false, "not installed", "apt-get install vmav"},
		{"no hook", nil, 0, 1, false, "not installed", "vmav hook install"},
		{"a hook that cannot run", map[string]string{hook: ""}, 0o644, 1, false, "not executable", "chmod 755 " + hook},
		{"a hook", map[string]string{hook: ""}, 0o755, 1, true, hook, ""},
		{"newer than libvirtd", map[string]string{hook: "", "/proc/stat": "cpu 1\nbtime 1000\n", "/proc/77/cmdline": "/usr/sbin/libvirtd\x00",
			"/proc/77/stat": stat("100")}, 0o755, 1, false, "has not seen it", "systemctl restart libvirtd"},
		{"older than libvirtd", map[string]string{hook: "", "/proc/stat": "btime 4000000000\n", "/proc/77/cmdline": "/usr/sbin/libvirtd\x00",
			"/proc/77/stat": stat("100")}, 0o755, 1, true, hook, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := hostWith(t, 0, c.files)
			if c.mode != 0 {
				if err := os.Chmod(h.path(hook), c.mode); err != nil {
					t.Fatal(err)
				}
			}
			check(t, h.Service()[c.row], c.ok, c.detail, c.fix)
		})
	}
}

func TestDirectory(t *testing.T) {
	h := hostWith(t, 0, map[string]string{"/var/lib/": "", "/var/lib/file": ""})
	check(t, h.Directory("state", "/var/lib/vmav", 1), true, "/var/lib/vmav, ", "")
	check(t, h.Directory("state", "/var/lib/vmav", 0), true, "/var/lib/vmav", "")
	check(t, h.Directory("state", "/var/lib/file/vmav", 1), false, "not a directory", "ls -ld /var/lib/file/vmav")
	// More than any disk has may be kept: said, and no reason to call the host unready.
	check(t, h.Directory("state", "/var/lib", 1<<62), true, "that may be kept", "")
}

func TestSettings(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	bad := write("bad-policy.toml", "[[rule]]\nname = \"r\"\n")
	unreached := write("unreached.toml", "[[rule]]\nname = \"a\"\naction = \"report\"\n[[rule]]\nname = \"b\"\naction = \"kill\"\n")
	good := write("good.toml", "[[rule]]\nname = \"a\"\nsignature = \"Win.*\"\naction = \"kill\"\n")
	h := &Inspector{root: "/"}
	for _, c := range []struct {
		name        string
		text        string
		row         int
		ok          bool
		detail, fix string
	}{
		{"unknown key", "sauce = 1\n", 0, false, "sauce", "editor FILE"},
		{"all wrong is named", "uri = 1\n[watch]\npoll = \"no\"\n", 0, false, "; ", "editor FILE"},
		{"valid", "policy = '" + good + "'\n", 0, true, "settings.toml", ""},
		{"its policy", "policy = '" + good + "'\n", 1, true, good, ""},
		{"no policy", "policy = '" + dir + "/none.toml'\n", 1, false, "none.toml", "editor " + dir + "/none.toml"},
		{"a rule without action", "policy = '" + bad + "'\n", 1, false, "action", "editor " + bad},
		{"a rule never reached", "policy = '" + unreached + "'\n", 1, false, "\"b\"", "vmav policy check " + unreached},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := write("settings.toml", c.text)
			_, answers := h.Settings(file)
			check(t, answers[c.row], c.ok, c.detail, strings.ReplaceAll(c.fix, "FILE", file))
			if strings.Contains(answers[c.row].Detail, "\n") {
				t.Errorf("%q: an answer is one line", answers[c.row].Detail)
			}
		})
	}
}

// TestEveryFailureHasItsCommand asks the host that the test runs on, whatever it lacks.
func TestEveryFailureHasItsCommand(t *testing.T) {
	h := Local()
	answers := append(h.Module(), h.KVM(), h.Ptrace(), h.Profiles(), h.Libvirt(context.Background(), "qemu:///no-such", "auto"))
	answers = append(answers, h.Sandbox()...)
	answers = append(answers, h.Service()...)
	for _, a := range answers {
		if a.What == "" || a.Detail == "" || a.OK == (a.Fix != "") {
			t.Errorf("%+v: an answer has a subject and words, and a command exactly where it is not well", a)
		}
	}
}
