package ready

import (
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Answer says how it is with one thing on the host.
type Answer struct {
	What   string `json:"what"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail"`
	// Fix is the shell command that mends it. It is "" only if all is well.
	Fix string `json:"fix,omitempty"`
	// Optional says that scanning works without it, so it does not make the host
	// unready.
	Optional bool `json:"optional,omitempty"`
}

// Ready tells whether the host has everything that scanning needs.
func Ready(answers []Answer) bool {
	for _, a := range answers {
		if !a.OK && !a.Optional {
			return false
		}
	}
	return true
}

// Inspector looks at a host. A test puts a directory of its own in the place of the
// host's root.
type Inspector struct {
	root    string // prefix of every path
	release string // of the running kernel
	uid     int
}

// Local returns an Inspector of the host that the process runs on, as the process's user
// sees it.
func Local() *Inspector {
	var u unix.Utsname
	h := &Inspector{root: "/", uid: os.Geteuid()}
	if unix.Uname(&u) == nil {
		h.release = unix.ByteSliceToString(u.Release[:])
	}
	return h
}

func (h *Inspector) path(p string) string { return filepath.Join(h.root, p) }

func (h *Inspector) exists(p string) bool {
	_, err := os.Stat(h.path(p))
	return err == nil
}

// text returns the content of a small file without the space around it. It is "" if the
// file cannot be read.
func (h *Inspector) text(p string) string {
	b, err := os.ReadFile(h.path(p))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// glob returns the files that match a pattern, as paths of the host.
func (h *Inspector) glob(pattern string) []string {
	found, _ := filepath.Glob(h.path(pattern)) // the patterns are constants and well-formed
	for i, f := range found {
		found[i] = "/" + strings.TrimPrefix(strings.TrimPrefix(f, h.root), "/")
	}
	return found
}

// asRoot returns a root's command as this user has to type it.
func (h *Inspector) asRoot(command string) string {
	if h.uid == 0 {
		return command
	}
	return "sudo " + strings.ReplaceAll(command, " && ", " && sudo ")
}

// systemd tells whether systemd runs this host.
func (h *Inspector) systemd() bool { return h.exists("/run/systemd/system") }

// start returns the command that starts a service.
func (h *Inspector) start(service string) string {
	if h.systemd() {
		return h.asRoot("systemctl enable --now " + service)
	}
	return h.asRoot("service " + service + " start")
}
