package ready

import (
	"os/user"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// gid returns the number of a group of the host.
func (h *Inspector) gid(name string) (uint32, bool) {
	for _, line := range strings.Split(h.text("/etc/group"), "\n") {
		if f := strings.Split(line, ":"); len(f) >= 3 && f[0] == name {
			n, err := strconv.ParseUint(f[2], 10, 32)
			return uint32(n), err == nil
		}
	}
	return 0, false
}

func (h *Inspector) hasUser(name string) bool {
	return strings.Contains("\n"+h.text("/etc/passwd"), "\n"+name+":")
}

// userName returns the name of this user, or what makes the shell put it in.
func userName() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return "$USER"
}

// capable tells whether this process has a capability.
func (h *Inspector) capable(n uint) bool {
	for _, line := range strings.Split(h.text("/proc/self/status"), "\n") {
		if rest, ok := strings.CutPrefix(line, "CapEff:"); ok {
			set, err := strconv.ParseUint(strings.TrimSpace(rest), 16, 64)
			return err == nil && set&(1<<n) != 0
		}
	}
	return false
}

// Ptrace looks at what it takes to read a QEMU process beside being its user. The kernel
// gives the process's memory and its VM's descriptor to whoever may trace it.
func (h *Inspector) Ptrace() Answer {
	a := Answer{What: "ptrace"}
	able := h.capable(unix.CAP_SYS_PTRACE)
	switch scope := h.text("/proc/sys/kernel/yama/ptrace_scope"); {
	case scope == "3":
		a.Detail = "kernel.yama.ptrace_scope is 3: nobody may trace, not even root, until the next boot without it"
		a.Fix = h.asRoot("sed -i /ptrace_scope/d /etc/sysctl.conf /etc/sysctl.d/*.conf && reboot")
	case able:
		a.OK, a.Detail = true, "CAP_SYS_PTRACE"
	case scope == "1" || scope == "2":
		a.Detail = "kernel.yama.ptrace_scope is " + scope + ": this user may read no QEMU process, not even of its own"
		a.Fix = "sudo vmav check"
	case h.uid == 0:
		a.Detail = "root without CAP_SYS_PTRACE reads no process of another user"
		a.Fix = "systemctl edit --full vmav-watch # or run vmav outside of what took the capability away"
	default:
		// With a session libvirt the QEMU processes belong to the user.
		a.OK, a.Detail = true, "QEMU processes of this user, and of no other"
	}
	return a
}
