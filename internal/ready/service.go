package ready

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// hookFile is the path that vmav hook install gives the libvirt hook.
const hookFile = "/etc/libvirt/hooks/qemu.d/vmav"

// Service looks at the service, and at the libvirt hook that tells it of domains.
func (h *Inspector) Service() []Answer {
	service := Answer{What: "service", Optional: true}
	unit := h.exists("/lib/systemd/system/vmav-watch.service") || h.exists("/etc/systemd/system/vmav-watch.service")
	pid := h.process("vmav", "watch")
	switch {
	case pid != 0:
		service.OK, service.Detail = true, "vmav watch runs, pid "+strconv.Itoa(pid)
	case !unit:
		service.Detail, service.Fix = "not installed: nothing is scanned by itself", h.asRoot("apt-get install vmav")
	case h.systemd():
		service.Optional = false
		service.Detail, service.Fix = "vmav-watch.service does not run: nothing is scanned when it starts", h.asRoot("systemctl enable --now vmav-watch")
	default:
		service.Detail, service.Fix = "vmav watch does not run, and cron scans once a day", h.asRoot("vmav watch &")
	}
	hook := Answer{What: "libvirt hook", Optional: true}
	st, err := os.Stat(h.path(hookFile))
	switch {
	case err != nil:
		hook.Detail, hook.Fix = "not installed: the service knows of domains by libvirt's events alone", h.asRoot("vmav hook install")
	case st.Mode()&0o111 == 0:
		hook.Detail, hook.Fix = hookFile+" is not executable", h.asRoot("chmod 755 "+hookFile)
	default:
		hook.OK, hook.Detail = true, hookFile
		// libvirt looks for hooks when it starts.
		for _, name := range []string{"libvirtd", "virtqemud"} {
			if pid := h.process(name, ""); pid != 0 {
				if began, ok := h.began(pid); ok && began.Before(st.ModTime()) {
					hook.OK = false
					hook.Detail, hook.Fix = name+" has not seen it: it was started before", h.asRoot("systemctl restart "+name)
				}
			}
		}
	}
	return []Answer{service, hook}
}

// process returns the id of a process by the name of its program and its first argument.
// An arg of "" means any. It returns 0 if there is none.
func (h *Inspector) process(name, arg string) int {
	for _, dir := range h.glob("/proc/[0-9]*") {
		line, err := os.ReadFile(h.path(filepath.Join(dir, "cmdline")))
		if err != nil {
			continue
		}
		argv := strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
		if filepath.Base(argv[0]) != name || arg != "" && !strings.Contains(" "+strings.Join(argv[1:], " ")+" ", " "+arg+" ") {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil {
			return pid
		}
	}
	return 0
}

// began returns when a process was started, to the second.
func (h *Inspector) began(pid int) (time.Time, bool) {
	stat := h.text("/proc/" + strconv.Itoa(pid) + "/stat")
	_, rest, ok := strings.Cut(stat, ") ") // the name may contain anything
	fields := strings.Fields(rest)
	if !ok || len(fields) < 20 {
		return time.Time{}, false
	}
	ticks, err := strconv.ParseInt(fields[19], 10, 64)
	if err != nil {
		return time.Time{}, false
	}
	for _, line := range strings.Split(h.text("/proc/stat"), "\n") {
		if at, ok := strings.CutPrefix(line, "btime "); ok {
			boot, err := strconv.ParseInt(at, 10, 64)
			const ticksPerSecond = 100 // USER_HZ, the same on every x86
			return time.Unix(boot+ticks/ticksPerSecond, 0), err == nil
		}
	}
	return time.Time{}, false
}
