package ready

import (
	"fmt"
	"strings"
)

// KVM looks at the processor and at KVM's own module. Without them guests are emulated.
// vmav reads these too, but the kernel module needs KVM.
func (h *Inspector) KVM() Answer {
	a := Answer{What: "kvm", Optional: true}
	vendor := ""
	switch info := h.text("/proc/cpuinfo"); {
	case hasFlag(info, "svm"):
		vendor = "amd"
	case hasFlag(info, "vmx"):
		vendor = "intel"
	}
	loaded := ""
	for _, v := range []string{"amd", "intel"} {
		if h.exists("/sys/module/kvm_" + v) {
			loaded = v
		}
	}
	switch {
	case loaded != "":
		module := "kvm_" + loaded
		nested := map[string]string{"amd": "npt", "intel": "ept"}[loaded]
		if p := h.text("/sys/module/" + module + "/parameters/" + nested); p == "0" || p == "N" {
			a.Detail = fmt.Sprintf("%s runs without nested paging (%s=0), which the kernel module requires", module, nested)
			a.Fix = h.asRoot(fmt.Sprintf("rm $(grep -l %s=0 /etc/modprobe.d/*) && modprobe -r %s && modprobe %s", nested, module, module))
			return a
		}
		if !h.exists("/dev/kvm") {
			a.Detail = module + " is loaded, and there is no /dev/kvm"
			a.Fix = h.asRoot("udevadm trigger --subsystem-match=misc")
			return a
		}
		a.OK, a.Detail = true, module
	case vendor != "":
		a.Detail = "the processor has it, and kvm_" + vendor + " is not loaded"
		a.Fix = h.asRoot("modprobe kvm_" + vendor)
	case hasFlag(h.text("/proc/cpuinfo"), "hypervisor"):
		a.Detail = "this host is a virtual machine that is given no virtualisation: guests are emulated or paravirtual, and the kernel module does not work"
		a.Fix = "virsh edit MACHINE # on its own host: <cpu mode='host-passthrough'/>"
	default:
		a.Detail = "the processor does not offer virtualisation: guests are emulated, and the kernel module does not work"
		a.Fix = h.asRoot("systemctl reboot --firmware-setup") + " # and turn SVM or VT-x on"
	}
	return a
}

// hasFlag tells whether the first processor has a feature.
func hasFlag(cpuinfo, flag string) bool {
	for _, line := range strings.Split(cpuinfo, "\n") {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "flags" {
			for _, f := range strings.Fields(value) {
				if f == flag {
					return true
				}
			}
			return false
		}
	}
	return false
}
