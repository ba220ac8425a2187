package ready

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"vmav.dev/vmav/internal/source/memhook"
)

const (
	moduleName = "kvm_memhook" // as the kernel writes it
	dkmsName   = "kvm-memhook" // as DKMS writes it
	group      = "vmav"        // the group that may use the device and the service's socket
)

// Module looks at the kernel module: whether it is loaded, and has the interface of this
// vmav. If it is not loaded, Module looks at what prevents that. Without the module
// everything but killing works.
func (h *Inspector) Module() []Answer {
	a := Answer{What: "module", Optional: true}
	major, minor, err := memhook.Version()
	switch {
	case err == nil:
		a.OK, a.Detail = true, fmt.Sprintf("interface %d.%d at %s", major, minor, memhook.Device)
	case errors.Is(err, memhook.ErrDenied):
		return []Answer{h.device()}
	case errors.Is(err, memhook.ErrAPI):
		a.Detail = err.Error()
		a.Fix = h.asRoot("apt-get install --only-upgrade vmav vmav-dkms && modprobe -r " + moduleName + " && modprobe " + moduleName)
	case errors.Is(err, memhook.ErrAbsent):
		a.Detail, a.Fix = h.unloaded()
		a.Detail += ": domains are read through QEMU, and nothing can be killed"
	default:
		a.Detail, a.Fix = err.Error(), h.asRoot("modprobe -r "+moduleName+" && modprobe "+moduleName)
	}
	answers := []Answer{a}
	if err == nil {
		answers = append(answers, h.device())
		if b, stale := h.build(); stale {
			answers = append(answers, b)
		}
	} else if s, enforced := h.signatures(); enforced {
		answers = append(answers, s)
	}
	return answers
}

// unloaded says why the module is not loaded, and which command loads it.
func (h *Inspector) unloaded() (detail, fix string) {
	if len(h.glob("/lib/modules/"+h.release+"/*/*/"+moduleName+".ko*")) > 0 || len(h.glob("/lib/modules/"+h.release+"/*/"+moduleName+".ko*")) > 0 {
		return "not loaded", h.asRoot("modprobe " + moduleName)
	}
	sources := h.glob("/usr/src/" + dkmsName + "-*/dkms.conf")
	if len(sources) == 0 {
		return "not installed", h.asRoot("apt-get install vmav-dkms linux-headers-" + h.release)
	}
	if !h.exists("/lib/modules/" + h.release + "/build/include") {
		return "not built: the headers of Linux " + h.release + " are not installed", h.asRoot("apt-get install linux-headers-" + h.release)
	}
	version := strings.TrimPrefix(filepath.Base(filepath.Dir(sources[0])), dkmsName+"-")
	name := dkmsName + "/" + version
	if log := "/var/lib/dkms/" + name + "/build/make.log"; h.exists(log) {
		return "DKMS could not build it for Linux " + h.release + ", see " + log, h.asRoot("dkms install --force " + name + " -k " + h.release)
	}
	return "not built for Linux " + h.release, h.asRoot("dkms install " + name + " -k " + h.release)
}

// build tells whether the loaded module differs from the installed one. This happens
// after an upgrade while a client held the module.
func (h *Inspector) build() (a Answer, stale bool) {
	out, err := exec.Command("modinfo", "-F", "srcversion", "-k", h.release, moduleName).Output()
	installed := strings.TrimSpace(string(out))
	loaded := h.text("/sys/module/" + moduleName + "/srcversion")
	if err != nil || installed == "" || loaded == "" || installed == loaded {
		return Answer{}, false // loaded by hand, or up to date
	}
	return Answer{What: "module build", Optional: true, Detail: "another build is loaded than is installed",
		Fix: h.asRoot("systemctl stop vmav-watch && modprobe -r " + moduleName + " && modprobe " + moduleName + " && systemctl start vmav-watch")}, true
}

// device checks who may use the module's device.
func (h *Inspector) device() Answer {
	a := Answer{What: "device", Optional: true}
	var st unix.Stat_t
	if err := unix.Stat(h.path(memhook.Device), &st); err != nil {
		a.Detail, a.Fix = fmt.Sprintf("look at %s: %v", memhook.Device, err), h.asRoot("udevadm trigger --subsystem-match=misc")
		return a
	}
	gid, known := h.gid(group)
	mode := st.Mode & 0o777
	switch {
	case !known:
		a.Detail = "there is no group " + group
		a.Fix = h.asRoot("systemd-sysusers vmav.conf && udevadm trigger --subsystem-match=misc")
		if !h.exists("/usr/lib/sysusers.d/vmav.conf") {
			a.Fix = h.asRoot("groupadd --system " + group)
		}
	case st.Gid != gid || mode != 0o660:
		a.Detail = fmt.Sprintf("%s has group %d and mode %04o, not %s and 0660", memhook.Device, st.Gid, mode, group)
		a.Fix = h.asRoot("udevadm control --reload && udevadm trigger --subsystem-match=misc")
		if !h.systemd() { // without systemd there is no udev
			a.Fix = h.asRoot("chgrp " + group + " " + memhook.Device + " && chmod 660 " + memhook.Device)
		}
	case unix.Access(h.path(memhook.Device), unix.R_OK|unix.W_OK) != nil:
		a.Detail = "this user is not in the group " + group + ", which may use " + memhook.Device
		a.Fix = h.asRoot("usermod -aG "+group+" "+userName()) + " # and log in anew"
	default:
		a.OK, a.Detail = true, fmt.Sprintf("%s is the group %s's", memhook.Device, group)
	}
	return a
}

// signatures tells whether this kernel only loads modules with a known signature, and
// whether the key that DKMS signs with can be enrolled.
func (h *Inspector) signatures() (a Answer, enforced bool) {
	why := ""
	if h.text("/sys/module/module/parameters/sig_enforce") == "Y" {
		why = "the kernel enforces module signatures"
	}
	if l := h.text("/sys/kernel/security/lockdown"); l != "" && !strings.Contains(l, "[none]") {
		why = "the kernel is locked down"
	}
	for _, f := range h.glob("/sys/firmware/efi/efivars/SecureBoot-*") {
		// Four bytes of attributes, then the value.
		if b, err := os.ReadFile(h.path(f)); err == nil && len(b) == 5 && b[4] == 1 {
			why = "Secure Boot is on"
		}
	}
	if why == "" {
		return Answer{}, false
	}
	a = Answer{What: "module signature", Optional: true, Detail: why + ": the key that DKMS signs with must be enrolled"}
	cert := "/var/lib/dkms/mok.pub"
	switch {
	case h.exists(cert):
		a.Fix = h.asRoot("mokutil --import "+cert) + " # then reboot, and enrol it"
	default:
		a.Fix = h.asRoot("dkms generate_mok && mokutil --import " + cert)
	}
	return a, true
}
