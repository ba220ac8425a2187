package ready

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// worker is the user that reads guest memory if root starts vmav.
const worker = "_vmav"

// Sandbox looks at what confines the workers that read guest memory.
func (h *Inspector) Sandbox() []Answer {
	landlock := Answer{What: "landlock", Optional: true}
	// This asks for the version of the kernel's interface, and makes no rule set.
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno == 0 {
		landlock.OK, landlock.Detail = true, fmt.Sprintf("ABI %d", abi)
	} else {
		landlock.Detail = "this kernel has none: workers are kept from files by their user and the filter of system calls alone"
		landlock.Fix = h.asRoot("apt-get install linux-image-amd64 && reboot")
		if lsm := h.text("/sys/kernel/security/lsm"); errno == unix.EOPNOTSUPP && lsm != "" {
			landlock.Detail = "it is not switched on: workers are kept from files by their user and the filter of system calls alone"
			landlock.Fix = h.asRoot(fmt.Sprintf(`sh -c 'echo GRUB_CMDLINE_LINUX=\"\$GRUB_CMDLINE_LINUX lsm=landlock,%s\" `+
				`>/etc/default/grub.d/landlock.cfg' && update-grub && reboot`, lsm))
		}
	}
	seccomp := Answer{What: "seccomp"}
	if strings.Contains(h.text("/proc/self/status"), "\nSeccomp:") {
		seccomp.OK, seccomp.Detail = true, "system calls can be filtered"
	} else {
		seccomp.Detail = "this kernel filters no system calls (CONFIG_SECCOMP_FILTER)"
		seccomp.Fix = h.asRoot("apt-get install linux-image-amd64 && reboot")
	}
	out := []Answer{landlock, seccomp}
	if h.uid != 0 {
		return out // workers keep this user
	}
	user := Answer{What: "worker's user", Optional: true}
	if h.hasUser(worker) {
		user.OK, user.Detail = true, worker
	} else {
		user.Detail = "there is no user " + worker + ": workers run as nobody"
		user.Fix = "systemd-sysusers vmav.conf"
		if !h.exists("/usr/lib/sysusers.d/vmav.conf") {
			user.Fix = "useradd --system --home-dir /nonexistent --shell /usr/sbin/nologin " + worker
		}
	}
	return append(out, user)
}
